-- token. Gives up the lock of migrations, if this process has it.
if redis.call('GET', 'ts:schema:lock') == ARGV[1] then redis.call('DEL', 'ts:schema:lock') end
