-- Stands before every script of the ledger, after `lanes`. A script runs alone and whole, so each is one step from one
-- consistent state to the next. Times are whole milliseconds of the server's clock, the only clock there is.

local LEASES = 'ts:leases'  -- running jobs by the time at which their lease runs out
local BELLS = 'ts:bells'    -- queued jobs by the time from which their bell may be rung again
local ENDED = 'ts:ended'    -- jobs that have ended by the time at which they did
local TERMINAL = {succeeded = true, failed = true, canceled = true}

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job_key(id)
  return 'ts:job:' .. id
end

local function get(id, ...)
  return redis.call('HMGET', job_key(id), ...)
end

local function set(id, ...)
  redis.call('HSET', job_key(id), ...)
end

local function fields(id)
  return redis.call('HGETALL', job_key(id))
end

local function say(id, kind, json)
  redis.call('XADD', 'ts:events:' .. id, 'MAXLEN', '~', 1000, '*', 'type', kind, 'data', json)
end

-- The lists of jobs by status: everybody's, and those of one tenant.
local function status_indexes(status, tenant)
  return 'ts:status:' .. status, 'ts:tenant:' .. tenant .. ':status:' .. status
end

-- Every list in which such a job stands.
local function indexes(status, kind, method, model, tenant)
  return {
    'ts:all', 'ts:kind:' .. kind, 'ts:method:' .. method, 'ts:model:' .. model, 'ts:tenant:' .. tenant,
    status_indexes(status, tenant),
  }
end

-- Those who wait for the job hear how it stands and what is new of it, and need not look at each change.
local function announce(id, status, version, news)
  local tenant = get(id, 'tenant')[1]
  redis.call('PUBLISH', 'ts:changed', table.concat({id, status, version, news, tenant}, ' '))
end

-- Every change ends here: the version rises and those who wait for the job wake up. News are 'status', 'progress' or
-- 'metric'.
local function changed(id, news)
  local version = redis.call('HINCRBY', job_key(id), 'version', 1)
  announce(id, get(id, 'status')[1], version, news)
  return version
end

local function say_status(id)
  local version = changed(id, 'status')
  local job = get(id, 'status', 'attempts', 'cancel')
  say(id, 'status', cjson.encode({
    status = job[1], attempts = tonumber(job[2]), cancel_requested = job[3] == '1', version = version,
  }))
  if TERMINAL[job[1]] then
    say(id, 'completed', cjson.encode({status = job[1], version = version}))
  end
end

-- Webhooks. A delivery tells one receiver of one thing. Those to one host wait by themselves, for each tenant, so that
-- nobody waits for another's slow receiver.
local DELIVERIES = 'ts:deliveries'           -- all deliveries by the time at which they were made
local RECEIVERS = 'ts:deliveries:receivers'  -- tenants with a host by the time at which the first delivery there is due
local PING = 'webhook.ping'

local function webhooks_key(tenant)
  return 'ts:webhooks:' .. tenant  -- by id, a tenant's endpoints as JSON
end

local function secrets_key(tenant)
  return 'ts:webhook-secrets:' .. tenant  -- by an endpoint's id, what signs for it; by '', for webhooks of submissions
end

local function delivery_key(id)
  return 'ts:delivery:' .. id
end

local function delivery(id, ...)
  return redis.call('HMGET', delivery_key(id), ...)
end

-- The lists that a delivery stands in.
local function lists_of(id)
  local told = delivery(id, 'tenant', 'status', 'endpoint', 'job')
  local lists = {}
  for place, name in ipairs({'tenant', 'status', 'endpoint', 'job'}) do
    if told[place] ~= '' then lists[place] = 'ts:deliveries:' .. name .. ':' .. told[place] end
  end
  return lists
end

-- When a delivery is due, or nil for no more. A receiver's first delivery gives it its place.
local function plan(id, at)
  local receiver = delivery(id, 'receiver')[1]
  local waiting = 'ts:deliveries:due:' .. receiver
  if at then
    redis.call('ZADD', waiting, at, id)
    redis.call('HSET', delivery_key(id), 'due', at)
  else
    redis.call('ZREM', waiting, id)
    redis.call('HDEL', delivery_key(id), 'due')
  end
  local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  if first[1] then redis.call('ZADD', RECEIVERS, first[2], receiver) else redis.call('ZREM', RECEIVERS, receiver) end
end

-- Writes a delivery down, unless it is known. Endpoint and job may be ''.
local function deliver(id, tenant, endpoint, url, kind, job, at)
  if redis.call('EXISTS', delivery_key(id)) == 1 then return end
  local seq = redis.call('INCR', 'ts:seq')
  redis.call('HSET', delivery_key(id), 'id', id, 'seq', seq, 'tenant', tenant, 'endpoint', endpoint, 'url', url,
    'type', kind, 'job', job, 'status', 'pending', 'created_at', at, 'claims', 0, 'tries', 0, 'attempts', '[]',
    'receiver', tenant .. ' ' .. string.match(url, '^%a+://[^/?]*'))
  redis.call('ZADD', DELIVERIES, at, id)
  for _, list in pairs(lists_of(id)) do redis.call('ZADD', list, seq, id) end
  plan(id, at)
end

-- Gives a delivery another status.
local function stand(id, status)
  local before = delivery(id, 'status', 'seq')
  redis.call('ZREM', 'ts:deliveries:status:' .. before[1], id)
  redis.call('ZADD', 'ts:deliveries:status:' .. status, before[2], id)
  redis.call('HSET', delivery_key(id), 'status', status)
end

local function settle(id, status)
  stand(id, status)
  plan(id, nil)
end

-- Keeps the last attempts: one may be replayed as often as one likes.
local function note_attempt(id, attempt)
  local attempts = cjson.decode(delivery(id, 'attempts')[1])
  attempts[#attempts + 1] = attempt
  if #attempts > 20 then table.remove(attempts, 1) end
  redis.call('HSET', delivery_key(id), 'attempts', cjson.encode(attempts))
end

local function forget_delivery(id)
  plan(id, nil)
  for _, list in pairs(lists_of(id)) do redis.call('ZREM', list, id) end
  redis.call('ZREM', DELIVERIES, id)
  redis.call('DEL', delivery_key(id))
end

local function forget_deliveries_of(job)
  for _, id in ipairs(redis.call('ZRANGE', 'ts:deliveries:job:' .. job, 0, -1)) do forget_delivery(id) end
end

local function contains(list, wanted)
  for _, value in ipairs(list) do
    if value == wanted then return true end
  end
  return false
end

-- The end of a job is told to its own webhook and to those endpoints of its tenant that want to hear of it. The name of a
-- delivery follows from job and receiver, so each is told once. Inference is answered where it was asked.
local function tell_of_end(id, status, at)
  local job = get(id, 'kind', 'tenant', 'webhook')
  if job[1] == 'inference' then return end
  local kind, tenant, webhook = 'job.' .. status, job[2] or 'local', job[3] or ''
  local function tell(endpoint, url)
    deliver('msg_' .. redis.sha1hex(id .. ' ' .. endpoint), tenant, endpoint, url, kind, id, at)
  end
  if webhook ~= '' then tell('', webhook) end
  for _, text in ipairs(redis.call('HVALS', webhooks_key(tenant))) do
    local endpoint = cjson.decode(text)
    if not endpoint.disabled_at and contains(endpoint.events, kind) then tell(endpoint.id, endpoint.url) end
  end
end

-- Blobs are shared, because their names are their digests. Each job and each registered version that needs one holds it;
-- one that was let go by the last of them is loose, and the sweeper's.
local REFERENCES = 'ts:references'  -- how many hold a blob, by its digest
local LOOSE = 'ts:loose'            -- blobs that nobody holds any more

local function hold(digest)
  redis.call('SREM', LOOSE, digest)
  redis.call('HINCRBY', REFERENCES, digest, 1)
end

local function let_go(digest)
  if not digest or redis.call('HINCRBY', REFERENCES, digest, -1) > 0 then return end
  redis.call('HDEL', REFERENCES, digest)
  redis.call('SADD', LOOSE, digest)
end

-- Does something with each blob that a job left.
local function each_artifact(id, action)
  local artifacts = get(id, 'artifacts')[1]
  for _, artifact in pairs(artifacts and cjson.decode(artifacts) or {}) do action(artifact.digest) end
end

-- A file is what a job works on and nobody asks for again, so it is let go with the job's end; an image stays with the
-- job, which may be run again.
local function let_file_go(id)
  let_go(get(id, 'file')[1])
  redis.call('HDEL', job_key(id), 'file')
end

-- The one place where a job gets another status.
local function enter(id, status, at)
  local job = get(id, 'status', 'seq', 'tenant', 'model')
  if job[1] == 'queued' then leave_line(id) end
  if job[1] == 'running' then end_turn(id) end
  for _, index in ipairs({status_indexes(job[1], job[3])}) do redis.call('ZREM', index, id) end
  for _, index in ipairs({status_indexes(status, job[3])}) do redis.call('ZADD', index, job[2], id) end
  redis.call('ZREM', LEASES, id)
  redis.call('ZREM', BELLS, id)
  set(id, 'status', status)
  if TERMINAL[status] then
    set(id, 'finished_at', at)
    tell_of_end(id, status, at)
    redis.call('ZADD', ENDED, at, id)
    let_file_go(id)
  elseif status == 'queued' then
    redis.call('ZADD', BELLS, at, id)
    stand_in_line(id, lane_of(job[4]))
  elseif status == 'running' then
    begin_turn(id)
  end
  say_status(id)
end

-- Leaves nothing of a job that is not running, nor of what was to be told of it. What takes no memory comes first: a
-- server that is out of it permits that alone, and whatever follows in the same script.
local function forget_job(id)
  local job = get(id, 'status', 'kind', 'method', 'model', 'tenant')
  local image, key = unpack(get(id, 'image', 'key'))
  redis.call('ZREM', ENDED, id)
  redis.call('ZREM', BELLS, id)
  if job[1] == 'queued' then leave_line(id) end
  for _, index in ipairs(indexes(unpack(job))) do redis.call('ZREM', index, id) end
  forget_deliveries_of(id)
  let_go(image)
  let_file_go(id)
  each_artifact(id, let_go)
  if key and redis.call('HGET', 'ts:key:' .. key, 'job') == id then redis.call('DEL', 'ts:key:' .. key) end
  announce(id, 'deleted', 0, 'status')
  redis.call('DEL', job_key(id), 'ts:events:' .. id)
end

-- Whether this claim of the job is the one that holds it.
local function holds(id, claim)
  local job = get(id, 'status', 'claims')
  return job[1] == 'running' and job[2] == claim
end

-- Notes how far the job is, unless that would go back, and a metric as JSON or ''; what is new, if anything is.
local function note(id, done, total, metric)
  local before = get(id, 'done', 'total')
  local forward = tonumber(done) >= tonumber(before[1])
  local moved = forward and (done ~= before[1] or total ~= before[2])
  if moved then
    set(id, 'done', done, 'total', total)
    say(id, 'progress', cjson.encode({done = tonumber(done), total = tonumber(total)}))
  end
  if metric ~= '' then say(id, 'metric', metric) end
  return (moved and 'progress') or (metric ~= '' and 'metric')
end

-- How long the oldest of these waiting jobs has waited, in milliseconds.
local function oldest_wait(at, index)
  local oldest = redis.call('ZRANGE', index, 0, 0)[1]
  if not oldest then return 0 end
  return math.max(0, at - tonumber(get(oldest, 'created_at')[1]))
end

-- By id of a tenant's model, its versions as JSON, the current one first.
local function registry_key(tenant)
  return 'ts:registry:' .. tenant
end

local function version_key(tenant, id, digest)
  return table.concat({'ts:version', tenant, id, digest}, ':')
end

local function versions_of(tenant, id)
  return cjson.decode(redis.call('HGET', registry_key(tenant), id) or '[]')
end
