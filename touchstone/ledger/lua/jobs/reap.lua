-- most strikes, error as JSON, dispatch again after ms, most dispatches a call, name of the broker's queue, ms after which
-- a silent worker is removed, lease ms, ms without a call after which leases tell nothing.
local max_strikes, problem, pause = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local max_dispatches, broker_queue = tonumber(ARGV[4]), ARGV[5]
local lease, max_gap = tonumber(ARGV[7]), tonumber(ARGV[8])
local at = now()
redis.call('ZREMRANGEBYSCORE', SERVED, '-inf', at - tonumber(ARGV[6]))

-- Leases run out by the server's clock. Where nobody has called for long, or the clock was set back, it was the server that
-- stood still, or its clock that jumped: deadlines move along. A lease that seems to last longer than any is cut.
local before = tonumber(redis.call('GET', REAPED) or at)
redis.call('SET', REAPED, at)
local jumped = at < before or at - before > max_gap
for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, string.format('(%d', at + lease), '+inf')) do
  redis.call('ZADD', LEASES, at + lease, id)
end
if jumped then
  for _, id in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
    redis.call('HINCRBY', job_key(id), 'due', at - before)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', REDISPATCH, at, '+inf')) do redis.call('ZADD', REDISPATCH, at, id) end
end

-- A worker renews all its leases at once, so it lives if any lasts long yet, and is lost as a whole when the last one has run
-- out. Two that fall silent at nearly the same time have no job in common: whatever ended them was none of their jobs' doing.
local JUST_RENEWED, SAME_TIME = lease / 5, 2 * lease / 5
local MAX_LEASES = 1000
local groups, silent = {}, 0
local function group_of(worker, id)
  if groups[worker] then return groups[worker] end
  local jobs, newest = jobs_of(worker, id), 0
  for _, job in ipairs(jobs) do newest = math.max(newest, tonumber(redis.call('ZSCORE', LEASES, job) or 0)) end
  groups[worker] = {jobs = jobs, newest = newest}
  if newest <= at + SAME_TIME then silent = silent + 1 end
  return groups[worker]
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', at + SAME_TIME, 'LIMIT', 0, MAX_LEASES)) do
  group_of(get(id, 'worker')[1], id)
end

-- Suspects are spared, too: their process ends with the worker that started it, which says so itself where only the process
-- was lost (`lose`).
local function take(id, company)
  local job = get(id, 'left', 'claims', 'losses')
  if job[1] == job[2] then return queue_again(id, at) end
  local innocent = jumped or silent > 1 or tonumber(job[3] or 0) > 0
  if not (innocent and spare(id, at)) then lose(id, at, company, max_strikes, problem) end
end

local lost = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', at, 'LIMIT', 0, MAX_LEASES)) do
  local group = group_of(get(id, 'worker')[1], id)
  if group.newest > at + JUST_RENEWED then
    take(id, 1)
    lost[#lost + 1] = id
  elseif group.newest <= at then
    take(id, #group.jobs)
    lost[#lost + 1] = id
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
    local queue = queue_of_job(id)
    if string.find(queue, '!', 1, true) then
      move_to(id, queue)  -- processes of suspects receive no messages
    elseif position_of(id) ~= queue or missing[queue] > 0 then
      move_to(id, queue)
      missing[queue] = missing[queue] - 1
      to_dispatch[#to_dispatch + 1] = id
    end
  end
end
return {to_dispatch, lost}
