-- lease ms, life ms, most, most of one lane, a secret for who has none, then pairs of a lane and how many of it this
-- process sends already. Takes deliveries that are due, a few of each lane, and forgets those that are too old:
-- {time, {delivery, job, secrets}, …}. One whose sender dies is due again when its lease has run out.
local lease, life, most, each = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local secret = ARGV[5]
local at = now()
local under_way = {}
for i = 6, #ARGV, 2 do under_way[ARGV[i]] = tonumber(ARGV[i + 1]) end

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

local taken = {at}
for _, lane in ipairs(redis.call('ZRANGEBYSCORE', LANES, '-inf', at, 'LIMIT', 0, most + #ARGV)) do
  local room = math.min(each - (under_way[lane] or 0), most - #taken + 1)
  if room > 0 then
    local due = redis.call('ZRANGEBYSCORE', 'ts:deliveries:due:' .. lane, '-inf', at, 'LIMIT', 0, room)
    for _, id in ipairs(due) do taken[#taken + 1] = take(id) end
  end
end
return taken
