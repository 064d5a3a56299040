-- ms that a job is kept after its end, most jobs a call. Deletes those that ended earlier; returns how many.
local ids = redis.call('ZRANGE', ENDED, '-inf', now() - tonumber(ARGV[1]), 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(ids) do delete_job(id) end
return #ids
