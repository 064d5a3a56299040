-- id. The time, and the key as it is stored, if there is one.
return {now(), redis.call('HGETALL', access_key(ARGV[1]))}
