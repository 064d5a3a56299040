-- Precedes every script of the ledger, after `fair_queue` and `webhooks`. A script runs atomically, so each is one step from
-- one consistent state to the next. Times are whole milliseconds of the server's clock; no other clock is used.

local LEASES = 'ts:leases'  -- running jobs by the time at which their lease runs out
local REDISPATCH = 'ts:bells'  -- queued jobs by the time from which they may be dispatched again
local REAPED = 'ts:reaped'  -- the time of the last look for leases that ran out
local ENDED = 'ts:ended'  -- jobs that have ended, by the time of their end
local UNCUT = 'ts:uncut'  -- of these, the jobs that have all their events, likewise
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

local function events_key(id)
  return 'ts:events:' .. id
end

local function add_event(id, kind, json)
  redis.call('XADD', events_key(id), 'MAXLEN', '~', 1000, '*', 'type', kind, 'data', json)
end

-- The indexes of jobs by status: of all tenants, and of one.
local function status_indexes(status, tenant)
  return 'ts:status:' .. status, 'ts:tenant:' .. tenant .. ':status:' .. status
end

-- Every index that such a job is in.
local function indexes(status, kind, method, model, tenant)
  return {
    'ts:all', 'ts:kind:' .. kind, 'ts:method:' .. method, 'ts:model:' .. model, 'ts:tenant:' .. tenant,
    status_indexes(status, tenant),
  }
end

-- Subscribers receive the job's status and the kind of the change, so they need not read the job at each change.
local function publish_change(id, status, version, kind_of_change)
  local tenant = get(id, 'tenant')[1]
  redis.call('PUBLISH', 'ts:changed', table.concat({id, status, version, kind_of_change, tenant}, ' '))
end

-- Every change ends here: the version rises and subscribers wake up. The kind is 'status', 'progress' or 'metric'.
local function record_change(id, kind_of_change)
  local version = redis.call('HINCRBY', job_key(id), 'version', 1)
  publish_change(id, get(id, 'status')[1], version, kind_of_change)
  return version
end

local function record_status(id)
  local version = record_change(id, 'status')
  local job = get(id, 'status', 'attempts', 'cancel')
  add_event(id, 'status', cjson.encode({
    status = job[1], attempts = tonumber(job[2]), cancel_requested = job[3] == '1', version = version,
  }))
  if TERMINAL[job[1]] then
    add_event(id, 'completed', cjson.encode({status = job[1], version = version}))
  end
  return version
end

-- Blobs are shared, because their names are their digests. Each job and each registered version that needs one holds it;
-- one that the last of them released is unreferenced, and left to the garbage collector. A blob counts once against the
-- quota of each tenant that holds it.
local REFERENCES = 'ts:references'  -- how many tenants hold a blob, by its digest
local UNREFERENCED = 'ts:loose'     -- blobs that no job or version holds any more
local STORED = 'ts:stored'          -- bytes of the blobs that each tenant holds or that its jobs may yet store

-- By digest, how many of a tenant's jobs and versions hold a blob, and its bytes.
local function holders_key(tenant)
  return 'ts:held:' .. tenant
end

local function holders_of(tenant, digest)
  local holders, size = string.match(redis.call('HGET', holders_key(tenant), digest) or '', '(%d+) (%d+)')
  return tonumber(holders or 0), tonumber(size or 0)
end

local function set_holders(tenant, digest, holders, size)
  redis.call('HSET', holders_key(tenant), digest, string.format('%d %d', holders, size))
end

local function add_holder(tenant, digest, size)
  local holders, known = holders_of(tenant, digest)
  if holders > 0 then return set_holders(tenant, digest, holders + 1, known) end
  set_holders(tenant, digest, 1, size)
  count(STORED, tenant, size)
  redis.call('SREM', UNREFERENCED, digest)
  redis.call('HINCRBY', REFERENCES, digest, 1)
end

local function remove_holder(tenant, digest)
  if not digest then return end
  local holders, size = holders_of(tenant, digest)
  if holders > 1 then return set_holders(tenant, digest, holders - 1, size) end
  if redis.call('HDEL', holders_key(tenant), digest) == 1 then count(STORED, tenant, -size) end
  if redis.call('HINCRBY', REFERENCES, digest, -1) > 0 then return end
  redis.call('HDEL', REFERENCES, digest)
  redis.call('SADD', UNREFERENCED, digest)
end

-- Calls `action` for each blob that a job stored.
local function for_each_artifact(id, action)
  local artifacts, tenant = unpack(get(id, 'artifacts', 'tenant'))
  for _, artifact in pairs(artifacts and cjson.decode(artifacts) or {}) do
    action(tenant, artifact.digest, artifact.size)
  end
end

-- Values of a job that are too large for the ledger are blobs; these fields have the digest and the bytes of each.
local LARGE_VALUES = {parameters_blob = true, result_blob = true}

local function parse_reference(reference)
  local digest, size = string.match(reference, '^(%S+) (%d+)$')
  return digest, tonumber(size)
end

local function hold_value(tenant, reference)
  if reference and reference ~= '' then add_holder(tenant, parse_reference(reference)) end
end

local function release_value(tenant, reference)
  if reference and reference ~= '' then remove_holder(tenant, (parse_reference(reference))) end
end

-- The most that a job may store is counted from its acceptance on, so that its results fit when it ends.
local function reserve(id, tenant, output_bytes)
  if output_bytes == 0 then return end
  set(id, 'leaves', output_bytes)
  count(STORED, tenant, output_bytes)
end

local function release_reserve(id)
  local output_bytes, tenant = unpack(get(id, 'leaves', 'tenant'))
  if not output_bytes then return end
  redis.call('HDEL', job_key(id), 'leaves')
  count(STORED, tenant, -output_bytes)
end

-- The files that a job works on are not needed after its end, so they are released then; an image stays with the job, which
-- may be run again.
local function release_files(id)
  local file, examples, tenant = unpack(get(id, 'file', 'examples', 'tenant'))
  remove_holder(tenant, file)
  remove_holder(tenant, examples)
  redis.call('HDEL', job_key(id), 'file', 'examples')
end

-- The only place where the status of a job changes.
local function set_status(id, status, at)
  local job = get(id, 'status', 'seq', 'tenant')
  if job[1] == 'queued' then dequeue(id) end
  if job[1] == 'running' then end_turn(id) end
  for _, index in ipairs({status_indexes(job[1], job[3])}) do redis.call('ZREM', index, id) end
  for _, index in ipairs({status_indexes(status, job[3])}) do redis.call('ZADD', index, job[2], id) end
  redis.call('ZREM', LEASES, id)
  redis.call('ZREM', REDISPATCH, id)
  set(id, 'status', status)
  if TERMINAL[status] then
    set(id, 'finished_at', at)
    deliver_job_end(id, status, at)
    redis.call('ZADD', ENDED, at, id)
    redis.call('ZADD', UNCUT, at, id)
    release_reserve(id)
    release_files(id)
  elseif status == 'queued' then
    redis.call('ZADD', REDISPATCH, at, id)
    enqueue(id, queue_of_job(id))
  elseif status == 'running' then
    begin_turn(id)
  end
  record_status(id)
end

-- Deletes all keys of a job that is not running, and its deliveries. Commands that need no memory come first: a server
-- that is out of memory permits only these, and then whatever follows in the same script.
local function delete_job(id)
  local job = get(id, 'status', 'kind', 'method', 'model', 'tenant')
  local image, key, parameters, result = unpack(get(id, 'image', 'key', 'parameters_blob', 'result_blob'))
  redis.call('ZREM', ENDED, id)
  redis.call('ZREM', UNCUT, id)
  redis.call('ZREM', REDISPATCH, id)
  if job[1] == 'queued' then
    dequeue(id)
    refund_passes(id)
  end
  for _, index in ipairs(indexes(unpack(job))) do redis.call('ZREM', index, id) end
  delete_deliveries_of(id)
  remove_holder(job[5], image)
  release_value(job[5], parameters)
  release_value(job[5], result)
  release_reserve(id)
  release_files(id)
  for_each_artifact(id, remove_holder)
  if key and redis.call('HGET', 'ts:key:' .. key, 'job') == id then redis.call('DEL', 'ts:key:' .. key) end
  publish_change(id, 'deleted', 0, 'status')
  redis.call('DEL', job_key(id), events_key(id))
end

-- Whether this claim of the job is the one that holds it.
local function holds_claim(id, claim)
  local job = get(id, 'status', 'claims')
  return job[1] == 'running' and job[2] == claim
end

-- Records how far the job is, unless that would go back, and a metric as JSON or ''. Returns the kind of the change, if any.
local function record_progress(id, done, total, metric)
  local before = get(id, 'done', 'total')
  local forward = tonumber(done) >= tonumber(before[1])
  local advanced = forward and (done ~= before[1] or total ~= before[2])
  if advanced then
    set(id, 'done', done, 'total', total)
    add_event(id, 'progress', cjson.encode({done = tonumber(done), total = tonumber(total)}))
  end
  if metric ~= '' then add_event(id, 'metric', metric) end
  return (advanced and 'progress') or (metric ~= '' and 'metric')
end

-- How long the oldest of these waiting jobs has waited, in milliseconds.
local function oldest_wait(at, index)
  local oldest = redis.call('ZRANGE', index, 0, 0)[1]
  if not oldest then return 0 end
  return math.max(0, at - tonumber(get(oldest, 'created_at')[1]))
end

local function access_key(id)
  return 'ts:access:' .. id
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
