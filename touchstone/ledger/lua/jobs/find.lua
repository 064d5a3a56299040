-- what the key of each begins with, first and last place as ZSET bounds, most of them, most looks, then the indexes that
-- each must stand in. Walks the index that is rarest between them from new to old: {place of the last look or '' at the
-- end, what was found}.
local prefix, position, last, limit, scans = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local rarest, fewest, others = nil, math.huge, {}
for i = 6, #ARGV do
  local size = redis.call('ZCOUNT', ARGV[i], last, position)
  if size < fewest then rarest, fewest = ARGV[i], size end
end
for i = 6, #ARGV do
  if ARGV[i] ~= rarest then others[#others + 1] = ARGV[i] end
end

local function is_in_all(id)
  for _, index in ipairs(others) do
    if not redis.call('ZSCORE', index, id) then return false end
  end
  return true
end

local found = {}
while scans > 0 do
  local many = math.min(scans, 100)
  local ids = redis.call('ZREVRANGEBYSCORE', rarest, position, last, 'WITHSCORES', 'LIMIT', 0, many)
  for i = 1, #ids, 2 do
    if is_in_all(ids[i]) then found[#found + 1] = redis.call('HGETALL', prefix .. ids[i]) end
    position = '(' .. ids[i + 1]
    if #found == limit then return {position, found} end
  end
  if #ids < 2 * many then return {'', found} end
  scans = scans - many
end
return {position, found}
