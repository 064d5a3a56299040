-- ms that a job is kept after its end, most jobs a call. Forgets those that ended earlier; how many they were.
local ids = redis.call('ZRANGE', ENDED, '-inf', now() - tonumber(ARGV[1]), 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(ids) do delete_job(id) end
return #ids
