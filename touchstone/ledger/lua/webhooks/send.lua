-- lease ms, life ms, most, most for one tenant, most for one receiver, a secret for who has none, then pairs of a
-- receiver and how many this process sends there already. Takes what is due and forgets what is too old:
-- {time, {delivery, job, secrets}, …}. One whose sender dies is due again when its lease has run out.
local lease, life, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local of_tenant, of_receiver, secret = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local LOOKS = 1000
local at = now()
local sending = {}  -- how many are under way here, by receiver and by tenant, which no space is in

local function tenant_of(receiver)
  return string.match(receiver, '^%S+')
end

local function count(receiver, change)
  for _, name in ipairs({receiver, tenant_of(receiver)}) do sending[name] = (sending[name] or 0) + change end
end

for i = 7, #ARGV, 2 do count(ARGV[i], tonumber(ARGV[i + 1])) end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELIVERIES, '-inf', at - life, 'LIMIT', 0, 100)) do
  forget_delivery(id)
end

-- Why a delivery cannot be sent: its endpoint is gone, or switched off. A ping may switch it on again.
local function hindrance(tenant, endpoint, kind)
  if endpoint == '' then return nil end
  local text = redis.call('HGET', webhooks_key(tenant), endpoint)
  if not text then return 'endpoint_deleted' end
  if cjson.decode(text).disabled_at and kind ~= PING then return 'endpoint_disabled' end
end

local function take(id)
  local told = delivery(id, 'tenant', 'endpoint', 'type', 'job')
  if told[4] ~= '' and redis.call('EXISTS', job_key(told[4])) == 0 then return forget_delivery(id) end
  local why = hindrance(told[1], told[2], told[3])
  if why then
    note_attempt(id, {at = at, ms = 0, error = why})
    return settle(id, 'failed')
  end
  redis.call('HINCRBY', delivery_key(id), 'claims', 1)
  plan(id, at + lease)
  local key = secrets_key(told[1])
  redis.call('HSETNX', key, told[2], cjson.encode({{secret = secret}}))
  return {redis.call('HGETALL', delivery_key(id)), fields(told[4]), redis.call('HGET', key, told[2])}
end

local function room(receiver, taken)
  return math.min(
    most - taken, of_receiver - (sending[receiver] or 0), of_tenant - (sending[tenant_of(receiver)] or 0))
end

local taken = {at}
for _, receiver in ipairs(redis.call('ZRANGEBYSCORE', RECEIVERS, '-inf', at, 'LIMIT', 0, LOOKS)) do
  local free = room(receiver, #taken - 1)
  if free > 0 then
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'ts:deliveries:due:' .. receiver, '-inf', at, 'LIMIT', 0, free)) do
      local one = take(id)
      if one then
        taken[#taken + 1] = one
        count(receiver, 1)
      end
    end
  end
end
return taken
