-- Stands before every script of the ledger. A script runs alone and whole, so each is one step from one
-- consistent state to the next. Times are whole milliseconds of the server's clock, the only clock there is.

local LEASES = 'ts:leases'  -- running jobs by the time at which their lease runs out
local BELLS = 'ts:bells'    -- queued jobs by the time from which their bell may be rung again
local SERVED = 'ts:served'  -- models that have workers of their own, by the last sign of life of one
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

-- Those who wait for the job hear how it stands and what is new of it, and need not look at each change.
local function announce(id, status, version, news)
  redis.call('PUBLISH', 'ts:changed', table.concat({id, status, version, news}, ' '))
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

-- The one place where a job gets another status.
local function enter(id, status, at)
  local job = get(id, 'status', 'seq')
  redis.call('ZREM', 'ts:status:' .. job[1], id)
  redis.call('ZADD', 'ts:status:' .. status, job[2], id)
  redis.call('ZREM', LEASES, id)
  redis.call('ZREM', BELLS, id)
  set(id, 'status', status)
  if TERMINAL[status] then
    set(id, 'finished_at', at)
  elseif status == 'queued' then
    redis.call('ZADD', BELLS, at, id)
  end
  say_status(id)
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

-- How long the oldest waiting job has waited, in milliseconds.
local function oldest_wait(at)
  local oldest = redis.call('ZRANGE', 'ts:status:queued', 0, 0)[1]
  if not oldest then return 0 end
  return math.max(0, at - tonumber(get(oldest, 'created_at')[1]))
end

local REGISTRY = 'ts:registry'  -- by id of a model, its versions as JSON, the current one first

local function version_key(id, digest)
  return 'ts:version:' .. id .. ':' .. digest
end

local function versions_of(id)
  return cjson.decode(redis.call('HGET', REGISTRY, id) or '[]')
end
