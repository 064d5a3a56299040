-- lease ms, retention ms, most, most for one tenant, most for one receiver, a secret for endpoints without one, then pairs of
-- a receiver and how many this process sends there already. Claims what is due and deletes what is too old:
-- {time, {delivery, job, secrets}, …}. One whose sender dies is due again when its lease has run out.
local lease, retention, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local per_tenant, per_receiver, secret = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local MAX_RECEIVERS = 1000
local at = now()
local in_flight = {}  -- how many this process sends, by receiver and by tenant; names of tenants have no spaces

local function tenant_of(receiver)
  return string.match(receiver, '^%S+')
end

local function count_in_flight(receiver, change)
  for _, name in ipairs({receiver, tenant_of(receiver)}) do in_flight[name] = (in_flight[name] or 0) + change end
end

for i = 7, #ARGV, 2 do count_in_flight(ARGV[i], tonumber(ARGV[i + 1])) end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELIVERIES, '-inf', at - retention, 'LIMIT', 0, 100)) do
  delete_delivery(id)
end

-- Why a delivery cannot be sent: its endpoint was deleted or disabled. A ping may enable it again.
local function find_obstacle(tenant, endpoint, kind)
  if endpoint == '' then return nil end
  local text = redis.call('HGET', webhooks_key(tenant), endpoint)
  if not text then return 'endpoint_deleted' end
  if cjson.decode(text).disabled_at and kind ~= PING then return 'endpoint_disabled' end
end

local function take(id)
  local values = get_delivery(id, 'tenant', 'endpoint', 'type', 'job')
  if values[4] ~= '' and redis.call('EXISTS', job_key(values[4])) == 0 then return delete_delivery(id) end
  local reason = find_obstacle(values[1], values[2], values[3])
  if reason then
    add_attempt(id, {at = at, ms = 0, error = reason})
    return end_delivery(id, 'failed')
  end
  redis.call('HINCRBY', delivery_key(id), 'claims', 1)
  schedule(id, at + lease)
  local key = secrets_key(values[1])
  redis.call('HSETNX', key, values[2], cjson.encode({{secret = secret}}))
  return {redis.call('HGETALL', delivery_key(id)), fields(values[4]), redis.call('HGET', key, values[2])}
end

local function capacity(receiver, taken)
  return math.min(
    limit - taken, per_receiver - (in_flight[receiver] or 0), per_tenant - (in_flight[tenant_of(receiver)] or 0))
end

local taken = {at}
for _, receiver in ipairs(redis.call('ZRANGEBYSCORE', RECEIVERS, '-inf', at, 'LIMIT', 0, MAX_RECEIVERS)) do
  local free = capacity(receiver, #taken - 1)
  if free > 0 then
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'ts:deliveries:due:' .. receiver, '-inf', at, 'LIMIT', 0, free)) do
      local claimed = take(id)
      if claimed then
        taken[#taken + 1] = claimed
        count_in_flight(receiver, 1)
      end
    end
  end
end
return taken
