-- name of the rate, tenant, requests a minute. A token bucket that holds a minute's tokens and is refilled evenly. Whether a
-- token was left, how many are left now, and in how many microseconds the next comes or, if this was granted, all are back.
local MINUTE = 60000000
local rate, tenant, limit = unpack(ARGV)
local key = 'ts:rate:' .. rate .. ':' .. tenant
local time = redis.call('TIME')
local at = time[1] * 1000000 + time[2]
local each = MINUTE / limit
local empty_for = math.max(0, tonumber(redis.call('GET', key) or 0) - at)
if empty_for > MINUTE + 1 then empty_for = 0 end  -- the clock was set back
if empty_for + each > MINUTE + 1 then return {0, 0, math.ceil(empty_for + each - MINUTE)} end

empty_for = empty_for + each
redis.call('SET', key, string.format('%.0f', at + empty_for), 'PX', math.ceil(empty_for / 1000))
return {1, math.floor((MINUTE - empty_for) / each + 0.001), math.ceil(empty_for)}
