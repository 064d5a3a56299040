-- id, claim, ms. Its worker cannot read the job, so it waits again as if it had not been attempted, but in no queue until then:
-- the reaper puts it back when it dispatches it.
local id, claim, pause = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not holds_claim(id, claim) then return 0 end
local at = now()
redis.call('HINCRBY', job_key(id), 'attempts', -1)
queue_again(id, at)
if get(id, 'status')[1] == 'queued' then
  dequeue(id)
  set(id, 'lane', ASIDE)
  redis.call('ZADD', REDISPATCH, at + pause, id)
end
return 1
