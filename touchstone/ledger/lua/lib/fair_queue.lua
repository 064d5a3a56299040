-- Who is next. Waiting jobs stand in lanes, one for each model that has workers of its own and '' for all others; there
-- in lines, one for each tenant. A free place goes to the tenant that runs the fewest jobs of the lane, among equals to
-- the one whose last turn is the longest ago, and of its line to the oldest.

local SERVED = 'ts:served'  -- models that have workers of their own, by the last sign of life of one
local CLAIMS = 'ts:claims'  -- running jobs by the token of their claim
local TURNS = 1e12          -- more than there will ever be, so that one running job outweighs them all

-- A tenant's waiting jobs by their place. Ids of models have no spaces.
local function line_key(lane, tenant)
  return 'ts:line:' .. lane .. ' ' .. tenant
end

-- Tenants with a line, by who is next.
local function tenants_key(lane)
  return 'ts:tenants:' .. lane
end

-- How many jobs of the lane each tenant runs.
local function running_key(lane)
  return 'ts:running:' .. lane
end

-- The number of each tenant's last turn, and under '' of the lane's last turn, for as long as anybody waits.
local function turns_key(lane)
  return 'ts:turns:' .. lane
end

local function count(key, name, change)
  if redis.call('HINCRBY', key, name, change) == 0 then redis.call('HDEL', key, name) end
end

-- Where a job stands: its lane, its tenant, and its place in the line.
local function place_of(id)
  local job = redis.call('HMGET', 'ts:job:' .. id, 'lane', 'tenant', 'seq')
  return job[1], job[2] or 'local', job[3]
end

-- Gives a tenant its place among those that wait in the lane, or none.
local function rank(lane, tenant)
  if redis.call('EXISTS', line_key(lane, tenant)) == 1 then
    local running = redis.call('HGET', running_key(lane), tenant) or 0
    local turn = redis.call('HGET', turns_key(lane), tenant) or 0
    redis.call('ZADD', tenants_key(lane), running * TURNS + turn, tenant)
    return
  end
  redis.call('ZREM', tenants_key(lane), tenant)
  if redis.call('EXISTS', tenants_key(lane)) == 0 then redis.call('DEL', turns_key(lane)) end
end

-- How many jobs wait in a lane.
local function standing_in(lane)
  local all = 0
  for _, tenant in ipairs(redis.call('ZRANGE', tenants_key(lane), 0, -1)) do
    all = all + redis.call('ZCARD', line_key(lane, tenant))
  end
  return all
end

local function lane_of(model)
  return redis.call('ZSCORE', SERVED, model) and model or ''
end

local function stand_in_line(id, lane)
  redis.call('HSET', 'ts:job:' .. id, 'lane', lane)
  local _, tenant, seq = place_of(id)
  redis.call('ZADD', line_key(lane, tenant), seq, id)
  rank(lane, tenant)
end

local function leave_line(id)
  local lane, tenant = place_of(id)
  if not lane then return end  -- accepted before there were lanes
  redis.call('ZREM', line_key(lane, tenant), id)
  rank(lane, tenant)
end

-- Lets a waiting job stand in this lane, if it stands in another.
local function move(id, lane)
  if place_of(id) == lane then return end
  leave_line(id)
  stand_in_line(id, lane)
end

local DAY = 86400000

-- The passes that each tenant with a budget has spent on a day: as many as its jobs may ask for, told when they come.
local function spent_key(day)
  return string.format('ts:passes:%d', day)
end

local function spend_passes(id, tenant, passes, day)
  redis.call('HINCRBY', spent_key(day), tenant, passes)
  redis.call('PEXPIRE', spent_key(day), 2 * DAY)
  redis.call('HSET', 'ts:job:' .. id, 'passes', passes, 'day', day)
end

-- Whatever ends before it was ever begun has cost nothing.
local function give_passes_back(id)
  local job = redis.call('HMGET', 'ts:job:' .. id, 'passes', 'day', 'claims', 'tenant')
  if job[1] and job[3] == '0' and redis.call('EXISTS', spent_key(job[2])) == 1 then
    count(spent_key(job[2]), job[4], -job[1])
  end
end

local function begin_turn(id)
  local lane, tenant = place_of(id)
  redis.call('HSET', CLAIMS, redis.call('HGET', 'ts:job:' .. id, 'token'), id)
  count(running_key(lane), tenant, 1)
  if redis.call('EXISTS', tenants_key(lane)) == 1 then
    redis.call('HSET', turns_key(lane), tenant, redis.call('HINCRBY', turns_key(lane), '', 1))
  end
  rank(lane, tenant)
end

local function end_turn(id)
  local lane, tenant = place_of(id)
  if not lane then return end
  redis.call('HDEL', CLAIMS, redis.call('HGET', 'ts:job:' .. id, 'token'))
  count(running_key(lane), tenant, -1)
  rank(lane, tenant)
end

-- The job whose turn it is in a lane, among tenants that are not in the crowd.
local function next_in(lane, crowd, size)
  for _, tenant in ipairs(redis.call('ZRANGE', tenants_key(lane), 0, size)) do
    if not crowd[tenant] then return redis.call('ZRANGE', line_key(lane, tenant), 0, 0)[1] end
  end
end
