-- most attempts, error as JSON, dispatch again after ms, most dispatches a call, name of the broker's queue, ms after which
-- a silent worker is removed.
local max_attempts, problem, pause = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local max_dispatches, broker_queue = tonumber(ARGV[4]), ARGV[5]
local at = now()
redis.call('ZREMRANGEBYSCORE', SERVED, '-inf', at - tonumber(ARGV[6]))

local lost = redis.call('ZRANGEBYSCORE', LEASES, '-inf', at, 'LIMIT', 0, 100)
for _, id in ipairs(lost) do
  local job = get(id, 'attempts', 'cancel')
  if job[2] == '1' then
    set_status(id, 'canceled', at)
  elseif tonumber(job[1]) >= max_attempts then
    set(id, 'error', problem)
    set_status(id, 'failed', at)
  else
    set_status(id, 'queued', at)
  end
end

-- Messages of jobs that were canceled stay until a worker receives them; where none does, they must not grow without bound.
local SPARE_MESSAGES = 1000
local waiting = redis.call('ZCARD', 'ts:status:queued')
local function count_messages(messages_key)
  redis.call('LTRIM', messages_key, -(waiting + SPARE_MESSAGES), -1)
  return redis.call('LLEN', messages_key)
end

-- A message is missing where the broker holds fewer for a queue than jobs wait there, for those of another queue are read by
-- no worker of this one; or where a job waits in a queue that no worker serves any more.
local missing, stray, lack = {}, waiting, false
local function compare_queue(queue, messages_key)
  local in_queue = count_waiting(queue)
  missing[queue], stray = in_queue - count_messages(messages_key), stray - in_queue
  lack = lack or missing[queue] > 0
end
compare_queue('', broker_queue)
for _, model in ipairs(redis.call('ZRANGE', SERVED, 0, -1)) do compare_queue(model, broker_queue .. ':' .. model) end

-- Those dispatched the longest time ago come first; the fraction keeps their order. A job that needs no dispatch is moved to
-- the end, so that those behind it are scanned at the next call.
local MAX_SCANNED = 1000
local to_dispatch = {}
if lack or stray > 0 then
  for position, id in ipairs(redis.call('ZRANGEBYSCORE', REDISPATCH, '-inf', at, 'LIMIT', 0, MAX_SCANNED)) do
    if #to_dispatch == max_dispatches then break end
    redis.call('ZADD', REDISPATCH, at + pause + position / MAX_SCANNED, id)
    local queue = queue_of(get(id, 'model')[1])
    if position_of(id) ~= queue or missing[queue] > 0 then
      move_to(id, queue)
      missing[queue] = missing[queue] - 1
      to_dispatch[#to_dispatch + 1] = id
    end
  end
end
return {to_dispatch, lost}
