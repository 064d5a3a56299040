-- token, ms. Extends the lock of migrations, unless another process has it by now.
if redis.call('GET', 'ts:schema:lock') ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', 'ts:schema:lock', ARGV[2])
