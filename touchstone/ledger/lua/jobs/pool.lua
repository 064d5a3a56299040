-- key, seed, n, counts as JSON or '' to ask only, ms to live. One count for equal questions: the first to come says
-- from which seed all draw, so whoever has counted further has counted the same samples and more.
local key, seed, n, counts, expiry = 'ts:counts:' .. ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
redis.call('HSETNX', key, 'seed', seed)
local known = redis.call('HMGET', key, 'seed', 'n', 'counts')
if counts ~= '' and known[1] == seed and n > tonumber(known[2] or 0) then
  redis.call('HSET', key, 'n', ARGV[3], 'counts', counts)
  known[3] = counts
end
redis.call('PEXPIRE', key, expiry)
return {known[1], known[3] or ''}
