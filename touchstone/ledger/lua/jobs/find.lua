-- prefix of the keys, first and last position as ZSET bounds, most results, most scans, then the indexes that each result
-- must be in. Scans the index with the fewest entries between the bounds, from new to old: {position of the last scan or ''
-- at the end, results}.
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
