-- tenant, id. Forgets an endpoint; what was still to be sent to it fails when it is due.
local tenant, id = unpack(ARGV)
redis.call('HDEL', secrets_key(tenant), id)
return redis.call('HDEL', webhooks_key(tenant), id)
