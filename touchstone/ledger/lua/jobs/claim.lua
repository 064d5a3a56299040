-- id of the dispatched job or '', worker, token of this call, lease ms, tenants that may not have another slot as JSON, level
-- of the suspects that are wanted or 0, how many of them a process may run together, then the models that the worker serves if
-- these are not all. Claims the job whose turn it is; a call repeated with its token gets the same claim; 'crowded' where only
-- such tenants wait.
local dispatched, worker, token, lease = unpack(ARGV, 1, 4)
local level, cohort = tonumber(ARGV[6]), tonumber(ARGV[7])
local known = redis.call('HGET', CLAIMS, token)
if known then return fields(known) end

local busy_tenants, busy_count = {}, 0
for _, tenant in ipairs(cjson.decode(ARGV[5])) do
  busy_tenants[tenant], busy_count = true, busy_count + 1
end
local serves = {}
for i = 8, #ARGV do serves[ARGV[i]] = true end

-- A process of suspects runs no more of them together than their level allows, and no two levels.
if level > 0 then
  if redis.call('SCARD', runs_key(worker)) >= cohort then return 'crowded' end
  local other = redis.call('SRANDMEMBER', runs_key(worker))
  if other and get(other, 'losses')[1] ~= ARGV[6] then return 'crowded' end
end

-- Where workers of one model alone came or went since a job was accepted, it is dispatched to another queue than it waits in.
local job = get(dispatched, 'status', 'lane', 'model', 'losses')
local queue = job[2]
if job[1] == 'queued' and queue ~= ASIDE then
  local suspect = tonumber(job[4] or 0) > 0
  queue = serves[job[3]] and not suspect and job[3] or queue_of(job[3], job[4])
  move_to(dispatched, queue)
end

-- The job's own queue first, then those of the worker: a message may have been used for another queue's job.
local queues = {unpack(ARGV, 8)}
if #queues == 0 then queues = {''} end
if level > 0 then
  for i, name in ipairs(queues) do queues[i] = suspects_queue(name, level) end
elseif queue and not string.find(queue, '!', 1, true) and (#ARGV < 8 or serves[queue]) then
  table.insert(queues, 1, queue)
end

local id, anyone_waits
for _, name in ipairs(queues) do
  id = id or next_job(name, busy_tenants, busy_count)
  anyone_waits = anyone_waits or redis.call('EXISTS', tenants_key(name)) == 1
end
if not id then return anyone_waits and 'crowded' end

local at = now()
redis.call('HINCRBY', job_key(id), 'attempts', 1)
redis.call('HINCRBY', job_key(id), 'claims', 1)
local due = at + get(id, 'deadline')[1]
set(id, 'worker', worker, 'token', token, 'started_at', at, 'due', due, 'done', 0, 'total', 0)
set_status(id, 'running', at)
redis.call('ZADD', LEASES, at + lease, id)
return fields(id)
