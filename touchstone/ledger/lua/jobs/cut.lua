-- ms that all events of a job are kept after its end, most jobs a call. Of jobs that ended earlier only the changes of status
-- stay, which a stream may still ask for, in the job itself; returns how many jobs these were. Commands that need no memory
-- come first: see `delete_job`.
local kept, most = tonumber(ARGV[1]), tonumber(ARGV[2])

-- What `touchstone.ledger.events` reads: of a change of status its id and its data, of the end, which follows from the last
-- of these, the id alone.
local function shorten(entry)
  local kind, data = entry[2][2], entry[2][4]
  if kind == 'completed' then return {entry[1]} end
  if kind ~= 'status' then return nil end
  local change = cjson.decode(data)
  return {entry[1], change.status, change.attempts, change.cancel_requested, change.version}
end

local function cut(id)
  local story = {}
  for _, entry in ipairs(redis.call('XRANGE', events_key(id), '-', '+')) do story[#story + 1] = shorten(entry) end
  redis.call('DEL', events_key(id))
  redis.call('HDEL', job_key(id), 'worker', 'token', 'due', 'deadline', 'ended_by', 'given_back')
  set(id, 'events', cjson.encode(story))
end

local ids = redis.call('ZRANGE', UNCUT, '-inf', now() - kept, 'BYSCORE', 'LIMIT', 0, most)
for _, id in ipairs(ids) do
  redis.call('ZREM', UNCUT, id)
  if redis.call('EXISTS', events_key(id)) == 1 then cut(id) end
end
return #ids
