-- model, rows, budget or '', rows a second or '', token, ms that the token is known. Rows may be sent once they are
-- spent here; a call repeated with its token spends nothing more. The verdict, and rows spent or microseconds to wait.
local model, rows, budget, rate, token, expiry = unpack(ARGV)
local LATENESS = 100000  -- a caller that waited comes a little late, which must not lower the rate
local key, known = 'ts:spent:' .. model, 'ts:spend:' .. token
if redis.call('EXISTS', known) == 1 then return {'spent', 0} end

local before = tonumber(redis.call('HGET', key, 'rows') or 0)
if budget ~= '' and before + tonumber(rows) > tonumber(budget) then return {'over', before} end

if rate ~= '' then
  local time = redis.call('TIME')
  local at = time[1] * 1000000 + time[2]
  local free = tonumber(redis.call('HGET', key, 'free') or 0)
  if free > at then return {'wait', math.ceil(free - at)} end
  local next_free = math.max(free, at - LATENESS) + tonumber(rows) * 1000000 / tonumber(rate)
  redis.call('HSET', key, 'free', string.format('%.0f', next_free))
end

redis.call('SET', known, 1, 'PX', expiry)
return {'spent', redis.call('HINCRBY', key, 'rows', rows)}
