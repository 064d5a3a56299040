-- most attempts, error as JSON, ring again after ms, most bells a call, name of the broker's list, ms after which a
-- silent worker is forgotten.
local most, problem, pause, bells, list = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local at = now()
redis.call('ZREMRANGEBYSCORE', SERVED, '-inf', at - tonumber(ARGV[6]))

local lost = redis.call('ZRANGEBYSCORE', LEASES, '-inf', at, 'LIMIT', 0, 100)
for _, id in ipairs(lost) do
  local job = get(id, 'attempts', 'cancel')
  if job[2] == '1' then
    enter(id, 'canceled', at)
  elseif tonumber(job[1]) >= most then
    set(id, 'error', problem)
    enter(id, 'failed', at)
  else
    enter(id, 'queued', at)
  end
end

-- Bells of jobs that were canceled stay until a worker hears them; where none does, they must not grow without bound.
local SPARE_BELLS = 1000
local waiting = redis.call('ZCARD', 'ts:status:queued')
local function bells_in(queue)
  redis.call('LTRIM', queue, -(waiting + SPARE_BELLS), -1)
  return redis.call('LLEN', queue)
end

-- A bell is missing only where the broker holds fewer messages than jobs wait. Those whose bell was rung the longest
-- time ago come first; the fraction keeps their order.
local missing = waiting - bells_in(list)
for _, model in ipairs(redis.call('ZRANGE', SERVED, 0, -1)) do
  missing = missing - bells_in(list .. ':' .. model)
end
local ring = {}
if missing > 0 then
  ring = redis.call('ZRANGEBYSCORE', BELLS, '-inf', at, 'LIMIT', 0, math.min(missing, bells))
  for place, id in ipairs(ring) do
    redis.call('ZADD', BELLS, at + pause + place / 1000, id)
    move(id, lane_of(get(id, 'model')[1]))
  end
end
return {ring, lost}
