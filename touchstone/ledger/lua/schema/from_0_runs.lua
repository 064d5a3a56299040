-- position of the step ('0' at first), most jobs. Returns the position of the next step, or '0' after the last.
-- Versions before schemas did not write which jobs a worker runs. Without that, each job of a worker that is lost would count
-- as one that ran alone. Such a worker may still run and does not remove what it ends, so the set of its jobs expires.
local DAY = 86400000
local position, pairs_found = unpack(redis.call('ZSCAN', LEASES, ARGV[1], 'COUNT', ARGV[2]))
for i = 1, #pairs_found, 2 do
  local id = pairs_found[i]
  local worker = get(id, 'worker')[1]
  if worker and redis.call('SADD', runs_key(worker), id) == 1 then redis.call('PEXPIRE', runs_key(worker), DAY) end
end
return position
