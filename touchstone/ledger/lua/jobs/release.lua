-- id, claim. An orderly shutdown: the job waits again and the attempt does not count.
local id, claim = ARGV[1], ARGV[2]
local job = get(id, 'given_back', 'cancel')
if job[1] == claim then return 1 end
if not holds_claim(id, claim) then return 0 end

set(id, 'given_back', claim)
redis.call('HINCRBY', job_key(id), 'attempts', -1)
set_status(id, job[2] == '1' and 'canceled' or 'queued', now())
return 1
