-- token, schema. Ends a migration: the ledger has this schema from now on, unless another process has the lock by now.
if redis.call('GET', 'ts:schema:lock') ~= ARGV[1] then return 0 end
redis.call('SET', 'ts:schema', ARGV[2])
return 1
