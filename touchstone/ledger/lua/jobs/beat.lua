-- worker, info as JSON or '' where it stops, ms after which a silent worker is removed, the models that it serves if these
-- are not all. Returns the workers that are alive.
local worker, info, expiry = ARGV[1], ARGV[2], tonumber(ARGV[3])
local at = now()
if worker ~= '' then
  if info == '' then
    redis.call('ZREM', 'ts:workers', worker)
    redis.call('HDEL', 'ts:workers:info', worker)
  else
    redis.call('ZADD', 'ts:workers', at, worker)
    redis.call('HSET', 'ts:workers:info', worker, info)
    for i = 4, #ARGV do redis.call('ZADD', SERVED, at, ARGV[i]) end
  end
end
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', 'ts:workers', '-inf', at - expiry)) do
  redis.call('ZREM', 'ts:workers', silent)
  redis.call('HDEL', 'ts:workers:info', silent)
end
redis.call('ZREMRANGEBYSCORE', SERVED, '-inf', at - expiry)
local alive = redis.call('ZRANGE', 'ts:workers', 0, -1, 'WITHSCORES')
local workers = {}
for i = 1, #alive, 2 do
  workers[#workers + 1] = {alive[i], redis.call('HGET', 'ts:workers:info', alive[i]), alive[i + 1]}
end
return workers
