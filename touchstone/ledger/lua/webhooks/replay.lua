-- tenant, id. Sends a delivery once more from the beginning; one that is under way is left to it.
local tenant, id = unpack(ARGV)
local told = delivery(id, 'tenant', 'endpoint', 'claims', 'heard', 'status')
if told[1] ~= tenant then return 'unknown' end
if told[2] ~= '' then
  local text = redis.call('HGET', webhooks_key(tenant), told[2])
  if not text then return 'endpoint_deleted' end
  if cjson.decode(text).disabled_at then return 'endpoint_disabled' end
end
local under_way = told[5] == 'pending' and told[3] ~= (told[4] or '0')
if not under_way then
  redis.call('HSET', delivery_key(id), 'tries', 0)
  stand(id, 'pending')
  plan(id, now())
end
return 'ok'
