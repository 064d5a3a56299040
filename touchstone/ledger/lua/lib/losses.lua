-- Jobs whose worker was lost. One that ends its worker takes the others with it, and no record says which it was. So jobs
-- that were lost are *suspects*: they run among their like only, in a process of their own, ever fewer together, and in the
-- end alone. Only a loss there is held against a job.
--   losses   0 to 3, the level of suspicion: how often it was lost together with others
--   strikes  how often it was lost alone in a process of suspects
--   spared   how often it was lost to something that was none of its jobs' doing
local ALONE = 3  -- the last level
local MAX_SPARED = 30

local function queue_again(id, at)
  local canceled = get(id, 'cancel')[1] == '1'
  set_status(id, canceled and 'canceled' or 'queued', at)
end

-- Nothing is held against the job, unless that was so too often: then what ends its workers may be the job after all.
local function spare(id, at)
  if redis.call('HINCRBY', job_key(id), 'spared', 1) > MAX_SPARED then return false end
  queue_again(id, at)
  return true
end

local function strike(id, at, max_strikes, problem)
  local strikes = redis.call('HINCRBY', job_key(id), 'strikes', 1)
  if strikes < max_strikes or get(id, 'cancel')[1] == '1' then return queue_again(id, at) end
  set(id, 'error', problem)
  set_status(id, 'failed', at)
end

-- Lost among so many jobs of its worker.
local function lose(id, at, company, max_strikes, problem)
  local losses = tonumber(get(id, 'losses')[1] or 0)
  set(id, 'losses', company == 1 and ALONE or math.min(ALONE, losses + 1))
  if company == 1 and losses > 0 then return strike(id, at, max_strikes, problem) end
  queue_again(id, at)
end

-- What a worker runs, `id` among it: a job that an earlier version claimed is in no set.
local function jobs_of(worker, id)
  local jobs = redis.call('SMEMBERS', runs_key(worker))
  if id and not contains(jobs, id) then jobs[#jobs + 1] = id end
  return jobs
end
