-- id of the dispatched job, worker, token of this call, lease ms, tenants that may not have another slot as JSON, then the
-- models that the worker serves if these are not all. Claims the job whose turn it is; a call repeated with its token gets
-- the same claim; 'crowded' where only such tenants wait.
local dispatched, worker, token, lease = unpack(ARGV, 1, 4)
local known = redis.call('HGET', CLAIMS, token)
if known then return fields(known) end

local busy_tenants, busy_count = {}, 0
for _, tenant in ipairs(cjson.decode(ARGV[5])) do
  busy_tenants[tenant], busy_count = true, busy_count + 1
end
local serves = {}
for i = 6, #ARGV do serves[ARGV[i]] = true end

-- Where workers of one model alone came or went since a job was accepted, it is dispatched to another queue than it waits in.
local job = get(dispatched, 'status', 'lane', 'model')
local queue = job[2]
if job[1] == 'queued' then
  queue = serves[job[3]] and job[3] or queue_of(job[3])
  move_to(dispatched, queue)
end

-- The job's own queue first, then those of the worker: a message may have been used for another queue's job.
local queues = {unpack(ARGV, 6)}
if #queues == 0 then queues = {''} end
if queue and (#ARGV < 6 or serves[queue]) then table.insert(queues, 1, queue) end

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
