-- id, claim. Its worker will no longer renew the lease, so that the job is tried again when it has run out: what failed was
-- not the job, but files or devices. Returns whether the claim holds the job.
local id, claim = ARGV[1], ARGV[2]
if not holds_claim(id, claim) then return 0 end
if get(id, 'left')[1] ~= claim then
  set(id, 'left', claim)
  redis.call('HINCRBY', job_key(id), 'retries', 1)
end
return 1
