-- Webhooks. A delivery is one message for one receiver: a tenant and a host. Each receiver has a queue of deliveries, and each
-- tenant one of receivers, so that none waits for another's slow receiver, nor for another tenant's many.
local DELIVERIES = 'ts:deliveries'       -- all deliveries by the time of their creation
local TENANTS = 'ts:deliveries:tenants'  -- tenants by the time at which their first delivery is due
local EARLIER_RECEIVERS = 'ts:deliveries:receivers'  -- receivers of all tenants, as earlier versions kept them
local PING = 'webhook.ping'

-- A receiver's tenant; names of tenants have no spaces.
local function tenant_of(receiver)
  return string.match(receiver, '^%S+')
end

-- The receiver of a URL: ports and letter case make no new ones.
local function receiver_of(tenant, url)
  local authority = string.match(url, '^%a+://([^/?#]*)')
  local host = string.match(authority, '^%[[^%]]*%]') or string.match(authority, '^[^:]*')
  return tenant .. ' ' .. string.gsub(string.lower(host), '%.+$', '')
end

-- A receiver's deliveries by the time at which they are due.
local function due_key(receiver)
  return 'ts:deliveries:due:' .. receiver
end

-- A tenant's receivers by the time at which their first delivery is due.
local function receivers_key(tenant)
  return 'ts:deliveries:receivers:' .. tenant
end

local function webhooks_key(tenant)
  return 'ts:webhooks:' .. tenant  -- by id, a tenant's endpoints as JSON
end

local function secrets_key(tenant)
  return 'ts:webhook-secrets:' .. tenant  -- by an endpoint's id, its signing secrets; by '', those of webhooks in submissions
end

local function delivery_key(id)
  return 'ts:delivery:' .. id
end

local function get_delivery(id, ...)
  return redis.call('HMGET', delivery_key(id), ...)
end

-- The indexes that a delivery is in.
local function lists_of(id)
  local values = get_delivery(id, 'tenant', 'status', 'endpoint', 'job')
  local lists = {}
  for position, name in ipairs({'tenant', 'status', 'endpoint', 'job'}) do
    if values[position] ~= '' then lists[position] = 'ts:deliveries:' .. name .. ':' .. values[position] end
  end
  return lists
end

-- Sets when a name in an index is due: with the first of what waits there, or never where nothing does.
local function rank_by_first(index, name, waiting)
  local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  if first[1] then redis.call('ZADD', index, first[2], name) else redis.call('ZREM', index, name) end
end

local function rank_receiver(receiver)
  local tenant = tenant_of(receiver)
  rank_by_first(receivers_key(tenant), receiver, due_key(receiver))
  rank_by_first(TENANTS, tenant, receivers_key(tenant))
end

-- Sets when a delivery is due, nil for never. A receiver is due with its first delivery, a tenant with its first receiver.
local function schedule(id, at)
  local receiver = get_delivery(id, 'receiver')[1]
  local waiting = due_key(receiver)
  if at then
    redis.call('ZADD', waiting, at, id)
    redis.call('HSET', delivery_key(id), 'due', at)
  else
    redis.call('ZREM', waiting, id)
    redis.call('HDEL', delivery_key(id), 'due')
  end
  rank_receiver(receiver)
end

-- Writes a delivery, unless it exists. Endpoint and job may be ''.
local function deliver(id, tenant, endpoint, url, kind, job, at)
  if redis.call('EXISTS', delivery_key(id)) == 1 then return end
  local seq = redis.call('INCR', 'ts:seq')
  redis.call('HSET', delivery_key(id), 'id', id, 'seq', seq, 'tenant', tenant, 'endpoint', endpoint, 'url', url,
    'type', kind, 'job', job, 'status', 'pending', 'created_at', at, 'claims', 0, 'tries', 0, 'attempts', '[]',
    'receiver', receiver_of(tenant, url))
  redis.call('ZADD', DELIVERIES, at, id)
  for _, list in pairs(lists_of(id)) do redis.call('ZADD', list, seq, id) end
  schedule(id, at)
end

-- Changes the status of a delivery.
local function set_delivery_status(id, status)
  local before = get_delivery(id, 'status', 'seq')
  redis.call('ZREM', 'ts:deliveries:status:' .. before[1], id)
  redis.call('ZADD', 'ts:deliveries:status:' .. status, before[2], id)
  redis.call('HSET', delivery_key(id), 'status', status)
end

local function end_delivery(id, status)
  set_delivery_status(id, status)
  schedule(id, nil)
end

-- Keeps only the last attempts, because a delivery may be replayed without limit.
local function add_attempt(id, attempt)
  local attempts = cjson.decode(get_delivery(id, 'attempts')[1])
  attempts[#attempts + 1] = attempt
  if #attempts > 20 then table.remove(attempts, 1) end
  redis.call('HSET', delivery_key(id), 'attempts', cjson.encode(attempts))
end

local function delete_delivery(id)
  schedule(id, nil)
  for _, list in pairs(lists_of(id)) do redis.call('ZREM', list, id) end
  redis.call('ZREM', DELIVERIES, id)
  redis.call('DEL', delivery_key(id))
end

local function delete_deliveries_of(job)
  for _, id in ipairs(redis.call('ZRANGE', 'ts:deliveries:job:' .. job, 0, -1)) do delete_delivery(id) end
end

local function contains(list, wanted)
  for _, value in ipairs(list) do
    if value == wanted then return true end
  end
  return false
end

-- The end of a job is delivered to its own webhook and to those endpoints of its tenant that subscribe to it. The id of a
-- delivery follows from job and receiver, so each is delivered once. Inference jobs are answered in their request and
-- have no deliveries.
local function deliver_job_end(id, status, at)
  local job = redis.call('HMGET', 'ts:job:' .. id, 'kind', 'tenant', 'webhook')
  if job[1] == 'inference' then return end
  local kind, tenant, webhook = 'job.' .. status, job[2] or 'local', job[3] or ''
  local function deliver_to(endpoint, url)
    deliver('msg_' .. redis.sha1hex(id .. ' ' .. endpoint), tenant, endpoint, url, kind, id, at)
  end
  if webhook ~= '' then deliver_to('', webhook) end
  for _, text in ipairs(redis.call('HVALS', webhooks_key(tenant))) do
    local endpoint = cjson.decode(text)
    if not endpoint.disabled_at and contains(endpoint.events, kind) then deliver_to(endpoint.id, endpoint.url) end
  end
end
