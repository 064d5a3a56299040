-- tenant, id, endpoint as JSON, its secret, most endpoints of a tenant. The endpoint as it is stored, or false where the
-- tenant has as many as allowed.
local tenant, id, text, secret, max_endpoints = unpack(ARGV)
local key = webhooks_key(tenant)
local known = redis.call('HGET', key, id)
if known then return known end
if redis.call('HLEN', key) >= tonumber(max_endpoints) then return false end

local endpoint = cjson.decode(text)
endpoint.created_at = now()
redis.call('HSET', key, id, cjson.encode(endpoint))
redis.call('HSET', secrets_key(tenant), id, cjson.encode({{secret = secret}}))
return redis.call('HGET', key, id)
