-- id, claim, how the delivery stands now ('pending' for another try), ms until then, the attempt as JSON, '1' where the
-- receiver wants to hear no more. Only the claim that holds the delivery is heard.
local id, claim, status, pause, attempt, unwanted = unpack(ARGV)
local told = delivery(id, 'claims', 'heard', 'tenant', 'endpoint', 'type')
if told[1] ~= claim then return 0 end
if told[2] == claim then return 1 end

redis.call('HSET', delivery_key(id), 'heard', claim)
note_attempt(id, cjson.decode(attempt))
if status == 'pending' then
  redis.call('HINCRBY', delivery_key(id), 'tries', 1)
  plan(id, now() + tonumber(pause))
else
  settle(id, status)
end

local text = redis.call('HGET', webhooks_key(told[3]), told[4])
if text and (unwanted == '1' or (status == 'delivered' and told[5] == PING)) then
  local endpoint = cjson.decode(text)
  endpoint.disabled_at = unwanted == '1' and now() or nil
  redis.call('HSET', webhooks_key(told[3]), told[4], cjson.encode(endpoint))
end
return 1
