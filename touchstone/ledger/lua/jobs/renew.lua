-- worker, lease ms, ms without a look for lost leases after which deadlines tell nothing yet (see `reap`), then pairs of id
-- and claim. A verdict for each pair.
local worker, lease, max_gap = ARGV[1], ARGV[2], tonumber(ARGV[3])
local at = now()
local steady = math.abs(at - tonumber(redis.call('GET', REAPED) or at)) <= max_gap
local verdicts = {}
for i = 4, #ARGV, 2 do
  local id, claim = ARGV[i], ARGV[i + 1]
  local job = get(id, 'worker', 'cancel', 'due')
  local verdict = 'lost'
  if holds_claim(id, claim) and job[1] == worker then
    redis.call('ZADD', LEASES, at + lease, id)
    verdict = (job[2] == '1' and 'canceled') or (steady and at > tonumber(job[3]) and 'overdue') or 'fine'
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
