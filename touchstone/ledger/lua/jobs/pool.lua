-- key, seed, n, counts as JSON or '' to read only, ms to live. Certificates of equal questions share counts: the first one
-- sets the seed that all draw from, so counts of more samples include those of fewer.
local key, seed, n, counts, expiry = 'ts:counts:' .. ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
redis.call('HSETNX', key, 'seed', seed)
local known = redis.call('HMGET', key, 'seed', 'n', 'counts')
if counts ~= '' and known[1] == seed and n > tonumber(known[2] or 0) then
  redis.call('HSET', key, 'n', ARGV[3], 'counts', counts)
  known[3] = counts
end
redis.call('PEXPIRE', key, expiry)
return {known[1], known[3] or ''}
