-- ms before its end at which a lease shows that nobody renews it. How many suspects wait in each queue, as pairs, and how many
-- jobs may soon be among them.
local unrenewed = tonumber(ARGV[1])
return {redis.call('HGETALL', SUSPECTS), redis.call('ZCOUNT', LEASES, '-inf', now() + unrenewed)}
