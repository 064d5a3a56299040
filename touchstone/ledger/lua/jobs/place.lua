-- time in ms. The position of the first job that was accepted then or later, '+inf' where there is none. Positions are given
-- in the order of time, so a binary search reads some twenty among a million jobs.
local time = tonumber(ARGV[1])
local low, high = 0, redis.call('ZCARD', 'ts:all')
while low < high do
  local middle = math.floor((low + high) / 2)
  local id = redis.call('ZRANGE', 'ts:all', middle, middle)[1]
  if tonumber(get(id, 'created_at')[1]) < time then low = middle + 1 else high = middle end
end
return redis.call('ZRANGE', 'ts:all', low, low, 'WITHSCORES')[2] or '+inf'
