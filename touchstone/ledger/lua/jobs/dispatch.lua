-- name of the broker's queue, then of each job its id and its message. A message goes to the queue of the job's model alone,
-- if workers serve only that.
local broker_queue = ARGV[1]
for i = 2, #ARGV, 2 do
  local model = get(ARGV[i], 'lane')[1] or ''
  redis.call('LPUSH', model == '' and broker_queue or (broker_queue .. ':' .. model), ARGV[i + 1])
end
