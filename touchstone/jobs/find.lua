-- first place as a ZSET bound, most jobs, most looks, then the indexes that a job must stand in.
-- Walks the rarest index from new to old: {place of the last look or '' at the end, jobs}.
local place, limit, looks = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local rarest, fewest, others = nil, math.huge, {}
for i = 4, #ARGV do
  local size = redis.call('ZCARD', ARGV[i])
  if size < fewest then rarest, fewest = ARGV[i], size end
end
for i = 4, #ARGV do
  if ARGV[i] ~= rarest then others[#others + 1] = ARGV[i] end
end

local function stands_in_all(id)
  for _, index in ipairs(others) do
    if not redis.call('ZSCORE', index, id) then return false end
  end
  return true
end

local found = {}
while looks > 0 do
  local many = math.min(looks, 100)
  local ids = redis.call('ZREVRANGEBYSCORE', rarest, place, '-inf', 'WITHSCORES', 'LIMIT', 0, many)
  for i = 1, #ids, 2 do
    if stands_in_all(ids[i]) then found[#found + 1] = fields(ids[i]) end
    place = '(' .. ids[i + 1]
    if #found == limit then return {place, found} end
  end
  if #ids < 2 * many then return {'', found} end
  looks = looks - many
end
return {place, found}
