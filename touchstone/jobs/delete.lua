-- id. Forgets a job that is not running, and what was to be told of it.
local id = ARGV[1]
local job = get(id, 'status', 'kind', 'method', 'model')
if not job[1] then return 'unknown' end
if job[1] == 'running' then return 'running' end
if job[1] == 'queued' then leave_line(id) end
for _, index in ipairs({'all', 'status:' .. job[1], 'kind:' .. job[2], 'method:' .. job[3], 'model:' .. job[4]}) do
  redis.call('ZREM', 'ts:' .. index, id)
end
redis.call('ZREM', BELLS, id)
forget_deliveries_of(id)
redis.call('DEL', job_key(id), 'ts:events:' .. id)
announce(id, 'deleted', 0, 'status')
return 'ok'
