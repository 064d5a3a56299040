-- worker, lease ms, then pairs of id and claim. A verdict for each pair.
local worker, lease = ARGV[1], ARGV[2]
local at = now()
local verdicts = {}
for i = 3, #ARGV, 2 do
  local id, claim = ARGV[i], ARGV[i + 1]
  local job = get(id, 'worker', 'cancel', 'due')
  local verdict = 'lost'
  if holds_claim(id, claim) and job[1] == worker then
    redis.call('ZADD', LEASES, at + lease, id)
    verdict = (job[2] == '1' and 'canceled') or (at > tonumber(job[3]) and 'overdue') or 'fine'
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
