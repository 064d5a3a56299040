-- tenant, id. Deletes an endpoint; its pending deliveries fail when they are due.
local tenant, id = unpack(ARGV)
redis.call('HDEL', secrets_key(tenant), id)
return redis.call('HDEL', webhooks_key(tenant), id)
