-- Fair queueing. Waiting jobs are in queues, one for each model that has workers of its own and '' for all others, and for
-- each of these one for the suspects of each level (see `losses`); within a queue each tenant has a queue of its own. A free slot goes to the tenant that runs the fewest jobs of the queue, among
-- equals to the one whose last turn is the longest ago, and of its jobs to the oldest.

local SERVED = 'ts:served'  -- models that have workers of their own, by the last heartbeat of one
local CLAIMS = 'ts:claims'  -- running jobs by the token of their claim
local SUSPECTS = 'ts:suspects'  -- how many jobs wait in each queue of suspects
local ASIDE = '?'  -- the queue of a waiting job that is in none, until it may be dispatched again
local MAX_TURNS = 1e12          -- more than will ever occur, so that one running job outweighs all turns

-- A tenant's waiting jobs by their position. Ids of models have no spaces.
local function tenant_queue_key(queue, tenant)
  return 'ts:line:' .. queue .. ' ' .. tenant
end

-- Tenants that have waiting jobs, by who is next.
local function tenants_key(queue)
  return 'ts:tenants:' .. queue
end

-- The jobs that a worker runs.
local function runs_key(worker)
  return 'ts:runs:' .. worker
end

-- How many jobs of the queue each tenant runs.
local function running_key(queue)
  return 'ts:running:' .. queue
end

-- The number of each tenant's last turn, and under '' of the queue's last turn, for as long as any job waits.
local function turns_key(queue)
  return 'ts:turns:' .. queue
end

-- Adds to a count, which is gone at zero. A zero that was negated is written -0 by Redis 7, and then refused: adding
-- zero makes it one without a sign.
local function count(key, name, change)
  if redis.call('HINCRBY', key, name, change + 0) == 0 then redis.call('HDEL', key, name) end
end

-- Where a job waits: its queue, its tenant, and its position.
local function position_of(id)
  local job = redis.call('HMGET', 'ts:job:' .. id, 'lane', 'tenant', 'seq')
  return job[1], job[2] or 'local', job[3]
end

-- Sets a tenant's rank among those that wait in the queue, or removes it where it has no waiting job.
local function rank(queue, tenant)
  if redis.call('EXISTS', tenant_queue_key(queue, tenant)) == 1 then
    local running = redis.call('HGET', running_key(queue), tenant) or 0
    local turn = redis.call('HGET', turns_key(queue), tenant) or 0
    redis.call('ZADD', tenants_key(queue), running * MAX_TURNS + turn, tenant)
    return
  end
  redis.call('ZREM', tenants_key(queue), tenant)
  if redis.call('EXISTS', tenants_key(queue)) == 0 then redis.call('DEL', turns_key(queue)) end
end

-- How many jobs wait in a queue.
local function count_waiting(queue)
  local all = 0
  for _, tenant in ipairs(redis.call('ZRANGE', tenants_key(queue), 0, -1)) do
    all = all + redis.call('ZCARD', tenant_queue_key(queue, tenant))
  end
  return all
end

-- Ids of models have no exclamation marks.
local function suspects_queue(queue, level)
  return queue .. '!' .. level
end

-- The queue that a job of this model belongs into: that of its workers, or that of suspects where it was lost before.
local function queue_of(model, losses)
  local queue = redis.call('ZSCORE', SERVED, model) and model or ''
  return tonumber(losses or 0) > 0 and suspects_queue(queue, losses) or queue
end

local function queue_of_job(id)
  return queue_of(unpack(redis.call('HMGET', 'ts:job:' .. id, 'model', 'losses')))
end

local function count_suspects(queue, change)
  if string.find(queue, '!', 1, true) then count(SUSPECTS, queue, change) end
end

-- A job that ended its process goes behind those that did not yet, so that these need not wait for all of its attempts.
local function enqueue(id, queue)
  redis.call('HSET', 'ts:job:' .. id, 'lane', queue)
  local _, tenant, seq = position_of(id)
  local strikes = tonumber(redis.call('HGET', 'ts:job:' .. id, 'strikes') or 0)
  count_suspects(queue, redis.call('ZADD', tenant_queue_key(queue, tenant), seq + strikes * MAX_TURNS, id))
  rank(queue, tenant)
end

local function dequeue(id)
  local queue, tenant = position_of(id)
  if not queue then return end  -- accepted before there were queues of models
  count_suspects(queue, -redis.call('ZREM', tenant_queue_key(queue, tenant), id))
  rank(queue, tenant)
end

-- Moves a waiting job to this queue, if it waits in another.
local function move_to(id, queue)
  if position_of(id) == queue then return end
  dequeue(id)
  enqueue(id, queue)
end

local DAY = 86400000

-- The passes that each tenant with a budget has spent on a day: as many as its jobs may ask for, counted when they are accepted.
local function spent_key(day)
  return string.format('ts:passes:%d', day)
end

local function spend_passes(id, tenant, passes, day)
  redis.call('HINCRBY', spent_key(day), tenant, passes)
  redis.call('PEXPIRE', spent_key(day), 2 * DAY)
  redis.call('HSET', 'ts:job:' .. id, 'passes', passes, 'day', day)
end

-- A job that ends before its first claim costs nothing.
local function refund_passes(id)
  local job = redis.call('HMGET', 'ts:job:' .. id, 'passes', 'day', 'claims', 'tenant')
  if job[1] and job[3] == '0' and redis.call('EXISTS', spent_key(job[2])) == 1 then
    count(spent_key(job[2]), job[4], -job[1])
  end
end

local function begin_turn(id)
  local queue, tenant = position_of(id)
  local token, worker = unpack(redis.call('HMGET', 'ts:job:' .. id, 'token', 'worker'))
  redis.call('HSET', CLAIMS, token, id)
  redis.call('SADD', runs_key(worker), id)
  count(running_key(queue), tenant, 1)
  if redis.call('EXISTS', tenants_key(queue)) == 1 then
    redis.call('HSET', turns_key(queue), tenant, redis.call('HINCRBY', turns_key(queue), '', 1))
  end
  rank(queue, tenant)
end

local function end_turn(id)
  local queue, tenant = position_of(id)
  if not queue then return end
  local token, worker = unpack(redis.call('HMGET', 'ts:job:' .. id, 'token', 'worker'))
  redis.call('HDEL', CLAIMS, token)
  redis.call('SREM', runs_key(worker), id)
  count(running_key(queue), tenant, -1)
  rank(queue, tenant)
end

-- The job whose turn it is in a queue, among tenants that are not busy.
local function next_job(queue, busy_tenants, busy_count)
  for _, tenant in ipairs(redis.call('ZRANGE', tenants_key(queue), 0, busy_count)) do
    if not busy_tenants[tenant] then return redis.call('ZRANGE', tenant_queue_key(queue, tenant), 0, 0)[1] end
  end
end
