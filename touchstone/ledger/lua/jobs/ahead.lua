-- id. How many jobs start before this one, if none ends meanwhile: it starts when its tenant runs `level` jobs, and every
-- other tenant gets turns up to that level.
local id = ARGV[1]
if get(id, 'status')[1] ~= 'queued' then return 0 end
local queue, tenant = position_of(id)

local function running_and_turn(name)
  local running = redis.call('HGET', running_key(queue), name) or 0
  return tonumber(running), tonumber(redis.call('HGET', turns_key(queue), name) or 0)
end

local position = redis.call('ZRANK', tenant_queue_key(queue, tenant), id) or 0  -- one that is set aside has none
local own_running, own_turn = running_and_turn(tenant)
local level, ahead = own_running + position, position
for _, other in ipairs(redis.call('ZRANGE', tenants_key(queue), 0, -1)) do
  if other ~= tenant then
    local running, turn = running_and_turn(other)
    -- Among equals the tenant whose last turn is older goes first; a tenant that runs fewer catches up by new turns.
    local older = turn < own_turn or (turn == own_turn and other < tenant)
    local first = (running == own_running and older) or (running > own_running and position > 0)
    local turns = level - running + (first and 1 or 0)
    ahead = ahead + math.max(0, math.min(turns, redis.call('ZCARD', tenant_queue_key(queue, other))))
  end
end
return ahead
