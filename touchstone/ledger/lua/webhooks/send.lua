-- lease ms, retention ms, most in flight, as many more for tenants that have none, most for one tenant, most for one receiver,
-- a secret for endpoints without one, then pairs of a receiver and how many this process has in flight there already. Claims
-- what is due and deletes what is too old: {time, {delivery, job, secrets}, …}. One whose sender dies is due again when its
-- lease has run out. No more tenants than MAX_TENANTS are looked at in one claim; few of those can be busy, and the others
-- are not due any more in the next one.
local lease, retention, limit, reserve = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local per_tenant, per_receiver, secret = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local MAX_TENANTS = 1000
local at = now()
local in_flight, total = {}, 0  -- what this process sends, by receiver and by tenant, and in all

local function count_in_flight(receiver, change)
  total = total + change
  for _, name in ipairs({receiver, tenant_of(receiver)}) do in_flight[name] = (in_flight[name] or 0) + change end
end

for i = 8, #ARGV, 2 do count_in_flight(ARGV[i], tonumber(ARGV[i + 1])) end

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

-- Moves what earlier versions queued, some at a time: their receivers were URLs up to the path, in one index of all tenants.
-- A process of such a version may still write there.
local function move_earlier(most)
  for _, receiver in ipairs(redis.call('ZRANGE', EARLIER_RECEIVERS, 0, most - 1)) do
    if string.find(receiver, '://', 1, true) then
      for _, id in ipairs(redis.call('ZRANGE', due_key(receiver), 0, most - 1)) do
        local values = get_delivery(id, 'url', 'due')
        redis.call('ZREM', due_key(receiver), id)
        if values[1] then
          redis.call('HSET', delivery_key(id), 'receiver', receiver_of(tenant_of(receiver), values[1]))
          schedule(id, values[2])
        end
        most = most - 1
      end
    end
    rank_receiver(receiver)
    if most <= 0 then return end
    redis.call('ZREM', EARLIER_RECEIVERS, receiver)
  end
end

-- What could be sent for a tenant now, in order. As many receivers are looked at as it may have deliveries in flight, and
-- as many again, because those may all be busy.
local function find_due(tenant)
  local found = {}
  local receivers = redis.call('ZRANGEBYSCORE', receivers_key(tenant), '-inf', at, 'LIMIT', 0, 2 * per_tenant)
  for _, receiver in ipairs(receivers) do
    local free = per_receiver - (in_flight[receiver] or 0)
    for _, id in ipairs(free > 0 and redis.call('ZRANGEBYSCORE', due_key(receiver), '-inf', at, 'LIMIT', 0, free) or {}) do
      found[#found + 1] = {id = id, receiver = receiver}
    end
  end
  return found
end

move_earlier(500)
local tenants = redis.call('ZRANGEBYSCORE', TENANTS, '-inf', at, 'LIMIT', 0, MAX_TENANTS)
local waiting = {}  -- by tenant, what could be sent

-- The tenant that has the fewest in flight, among equals the one whose first delivery was due first.
local function next_tenant()
  local chosen, fewest = nil, per_tenant
  for _, tenant in ipairs(tenants) do
    local sent = in_flight[tenant] or 0
    if sent < fewest and (total < limit or sent == 0) then
      waiting[tenant] = waiting[tenant] or find_due(tenant)
      if #waiting[tenant] > 0 then chosen, fewest = tenant, sent end
    end
  end
  return chosen
end

local taken = {at}
while total < limit + reserve do
  local tenant = next_tenant()
  if not tenant then break end
  local first = table.remove(waiting[tenant], 1)
  local claimed = take(first.id)
  if claimed then
    taken[#taken + 1] = claimed
    count_in_flight(first.receiver, 1)
  end
end
return taken
