-- id, worker, token of this try, lease ms. The same try asked again gets the same claim; any other finds nothing.
local id, worker, token, lease = unpack(ARGV)
local job = get(id, 'status', 'token', 'deadline')
if job[1] == 'running' and job[2] == token then return fields(id) end
if job[1] ~= 'queued' then return false end

local at = now()
redis.call('HINCRBY', job_key(id), 'attempts', 1)
redis.call('HINCRBY', job_key(id), 'claims', 1)
set(id, 'worker', worker, 'token', token, 'started_at', at, 'due', at + job[3], 'done', 0, 'total', 0)
enter(id, 'running', at)
redis.call('ZADD', LEASES, at + lease, id)
return fields(id)
