-- position of the step ('0' at first), most jobs. Returns the position of the next step, or '0' after the last.
-- Versions before schemas kept all events of jobs that have ended; see `jobs/cut`.
local position, pairs_found = unpack(redis.call('ZSCAN', ENDED, ARGV[1], 'COUNT', ARGV[2]))
for i = 1, #pairs_found, 2 do redis.call('ZADD', UNCUT, pairs_found[i + 1], pairs_found[i]) end
return position
