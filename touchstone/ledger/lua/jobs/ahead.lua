-- id. How many jobs get their turn before this one, if none ends meanwhile: it starts when its tenant runs as many jobs as
-- `level`, and the others get theirs up to there.
local id = ARGV[1]
if get(id, 'status')[1] ~= 'queued' then return 0 end
local lane, tenant = place_of(id)

local function standing(name)
  local running = redis.call('HGET', running_key(lane), name) or 0
  return tonumber(running), tonumber(redis.call('HGET', turns_key(lane), name) or 0)
end

local place = redis.call('ZRANK', line_key(lane, tenant), id)
local own_running, own_turn = standing(tenant)
local level, ahead = own_running + place, place
for _, other in ipairs(redis.call('ZRANGE', tenants_key(lane), 0, -1)) do
  if other ~= tenant then
    local running, turn = standing(other)
    -- Among equals the one goes first whose last turn is older; who is behind catches up by turns, which are new.
    local older = turn < own_turn or (turn == own_turn and other < tenant)
    local first = (running == own_running and older) or (running > own_running and place > 0)
    local turns = level - running + (first and 1 or 0)
    ahead = ahead + math.max(0, math.min(turns, redis.call('ZCARD', line_key(lane, other))))
  end
end
return ahead
