-- id, claim, the delivery's new status ('pending' for another attempt), ms until then, the attempt as JSON, '1' where the
-- receiver answered 410. Only the claim that holds the delivery counts.
local id, claim, status, retry_after, attempt, gone = unpack(ARGV)
local values = get_delivery(id, 'claims', 'heard', 'tenant', 'endpoint', 'type')
if values[1] ~= claim then return 0 end
if values[2] == claim then return 1 end

redis.call('HSET', delivery_key(id), 'heard', claim)
add_attempt(id, cjson.decode(attempt))
if status == 'pending' then
  redis.call('HINCRBY', delivery_key(id), 'tries', 1)
  schedule(id, now() + tonumber(retry_after))
else
  end_delivery(id, status)
end

local text = redis.call('HGET', webhooks_key(values[3]), values[4])
if text and (gone == '1' or (status == 'delivered' and values[5] == PING)) then
  local endpoint = cjson.decode(text)
  endpoint.disabled_at = gone == '1' and now() or nil
  redis.call('HSET', webhooks_key(values[3]), values[4], cjson.encode(endpoint))
end
return 1
