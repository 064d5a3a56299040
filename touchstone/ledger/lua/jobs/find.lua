-- prefix of the keys, first and last position as ZSET bounds, most results, most scans, bytes after which no more results are
-- added, then the indexes that each result must be in. Scans the index with the fewest entries between the bounds, from new
-- to old: {position of the last scan or '' at the end, results, their bytes}.
local prefix, position, last, limit, scans = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local room, size = tonumber(ARGV[6]), 0
local rarest, fewest, others = nil, math.huge, {}
for i = 7, #ARGV do
  local entries = redis.call('ZCOUNT', ARGV[i], last, position)
  if entries < fewest then rarest, fewest = ARGV[i], entries end
end
for i = 7, #ARGV do
  if ARGV[i] ~= rarest then others[#others + 1] = ARGV[i] end
end

local function is_in_all(id)
  for _, index in ipairs(others) do
    if not redis.call('ZSCORE', index, id) then return false end
  end
  return true
end

-- Of an entry as names and values in turn, with its large values, which are read from their blobs.
local function bytes_of(entry)
  local bytes = 0
  for i = 1, #entry, 2 do
    bytes = bytes + #entry[i + 1]
    if LARGE_VALUES[entry[i]] then bytes = bytes + select(2, parse_reference(entry[i + 1])) end
  end
  return bytes
end

local found = {}
while scans > 0 do
  local many = math.min(scans, 100)
  local ids = redis.call('ZREVRANGEBYSCORE', rarest, position, last, 'WITHSCORES', 'LIMIT', 0, many)
  for i = 1, #ids, 2 do
    if is_in_all(ids[i]) then
      found[#found + 1] = redis.call('HGETALL', prefix .. ids[i])
      size = size + bytes_of(found[#found])
    end
    position = '(' .. ids[i + 1]
    if #found == limit or size >= room then return {position, found, size} end
  end
  if #ids < 2 * many then return {'', found, size} end
  scans = scans - many
end
return {position, found, size}
