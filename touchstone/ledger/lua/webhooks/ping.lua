-- tenant, endpoint, id of the delivery. Sends a ping to an endpoint.
local tenant, endpoint, id = unpack(ARGV)
local text = redis.call('HGET', webhooks_key(tenant), endpoint)
if not text then return false end
deliver(id, tenant, endpoint, cjson.decode(text).url, PING, '', now())
return redis.call('HGETALL', delivery_key(id))
