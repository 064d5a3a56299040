-- id. Deletes a job that is not running.
local id = ARGV[1]
local status = get(id, 'status')[1]
if not status then return 'unknown' end
if status == 'running' then return 'running' end
delete_job(id)
return 'ok'
