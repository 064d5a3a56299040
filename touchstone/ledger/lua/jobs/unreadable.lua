-- Whether something was written here before jobs had tenants and blobs were counted: those that are oldest stand first.
local first = redis.call('ZRANGE', 'ts:all', 0, 0)[1]
local without_tenant = first and redis.call('HEXISTS', job_key(first), 'tenant') == 0
return (without_tenant or redis.call('EXISTS', 'ts:registry') == 1) and 1 or 0
