-- The schema of this ledger as written, or '0' where none was: a new ledger, or one from before schemas. '-1' where a version
-- wrote here that had no tenants and did not count blobs; the oldest jobs come first.
local written = redis.call('GET', 'ts:schema')
if written then return written end
local first = redis.call('ZRANGE', 'ts:all', 0, 0)[1]
local without_tenant = first and redis.call('HEXISTS', job_key(first), 'tenant') == 0
return (without_tenant or redis.call('EXISTS', 'ts:registry') == 1) and '-1' or '0'
