-- id. Revokes a key; 0 where there is none.
redis.call('ZREM', 'ts:access', ARGV[1])
return redis.call('DEL', access_key(ARGV[1]))
