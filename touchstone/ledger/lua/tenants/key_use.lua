-- id. Records that the key was used, unless it was revoked meanwhile.
if redis.call('EXISTS', access_key(ARGV[1])) == 0 then return 0 end
redis.call('HSET', access_key(ARGV[1]), 'used_at', now())
return 1
