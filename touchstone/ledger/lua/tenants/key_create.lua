-- id, hash, name, tenant, scope, ms at which it expires or ''. The key as it is stored; nothing where it would have
-- expired already.
local id, hash, name, tenant, scope, expires = unpack(ARGV)
local at = now()
if expires ~= '' and tonumber(expires) <= at then return false end
if redis.call('EXISTS', access_key(id)) == 0 then
  redis.call('HSET', access_key(id), 'id', id, 'hash', hash, 'name', name, 'tenant', tenant, 'scope', scope,
    'created_at', at)
  if expires ~= '' then redis.call('HSET', access_key(id), 'expires_at', expires) end
  redis.call('ZADD', 'ts:access', at, id)
end
return redis.call('HGETALL', access_key(id))
