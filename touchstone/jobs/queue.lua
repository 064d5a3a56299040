-- How many jobs wait, and how many milliseconds the oldest of them has waited.
return {redis.call('ZCARD', 'ts:status:queued'), oldest_wait(now())}
