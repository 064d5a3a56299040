-- most attempts, error as JSON, ring again after ms, most bells a call, name of the broker's list, ms after which a
-- silent worker is forgotten.
local most, problem, pause, bells, list = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local at = now()
redis.call('ZREMRANGEBYSCORE', SERVED, '-inf', at - tonumber(ARGV[6]))

local lost = redis.call('ZRANGEBYSCORE', LEASES, '-inf', at, 'LIMIT', 0, 100)
for _, id in ipairs(lost) do
  local job = get(id, 'attempts', 'cancel')
  if job[2] == '1' then
    enter(id, 'canceled', at)
  elseif tonumber(job[1]) >= most then
    set(id, 'error', problem)
    enter(id, 'failed', at)
  else
    enter(id, 'queued', at)
  end
end

-- Bells of jobs that were canceled stay until a worker hears them; where none does, they must not grow without bound.
local SPARE_BELLS = 1000
local waiting = redis.call('ZCARD', 'ts:status:queued')
local function bells_in(queue)
  redis.call('LTRIM', queue, -(waiting + SPARE_BELLS), -1)
  return redis.call('LLEN', queue)
end

-- A bell is missing where the broker holds fewer messages for a lane than jobs stand there, for those of another lane ring
-- for nobody here; or where a job stands in a lane that nobody serves any more.
local missing, strayed, lack = {}, waiting, false
local function compare(lane, queue)
  local stand = standing_in(lane)
  missing[lane], strayed = stand - bells_in(queue), strayed - stand
  lack = lack or missing[lane] > 0
end
compare('', list)
for _, model in ipairs(redis.call('ZRANGE', SERVED, 0, -1)) do compare(model, list .. ':' .. model) end

-- Those whose bell was rung the longest time ago come first; the fraction keeps their order. Whoever was looked at in vain
-- makes way for those behind.
local LOOKS = 1000
local ring = {}
if lack or strayed > 0 then
  for place, id in ipairs(redis.call('ZRANGEBYSCORE', BELLS, '-inf', at, 'LIMIT', 0, LOOKS)) do
    if #ring == bells then break end
    redis.call('ZADD', BELLS, at + pause + place / LOOKS, id)
    local lane = lane_of(get(id, 'model')[1])
    if place_of(id) ~= lane or missing[lane] > 0 then
      move(id, lane)
      missing[lane] = missing[lane] - 1
      ring[#ring + 1] = id
    end
  end
end
return {ring, lost}
