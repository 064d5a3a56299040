-- index of waiting jobs. How many there are, and how many milliseconds the oldest of them has waited.
return {redis.call('ZCARD', ARGV[1]), oldest_wait(now(), ARGV[1])}
