-- tenant, id. Sends a delivery again as if it were new; one that is in flight is left unchanged.
local tenant, id = unpack(ARGV)
local values = get_delivery(id, 'tenant', 'endpoint', 'claims', 'heard', 'status')
if values[1] ~= tenant then return 'unknown' end
if values[2] ~= '' then
  local text = redis.call('HGET', webhooks_key(tenant), values[2])
  if not text then return 'endpoint_deleted' end
  if cjson.decode(text).disabled_at then return 'endpoint_disabled' end
end
local in_flight = values[5] == 'pending' and values[3] ~= (values[4] or '0')
if not in_flight then
  redis.call('HSET', delivery_key(id), 'tries', 0)
  set_delivery_status(id, 'pending')
  schedule(id, now())
end
return 'ok'
