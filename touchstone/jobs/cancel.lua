-- id. A waiting job ends at once; a running one is told through its worker's next renewal.
local id = ARGV[1]
local job = get(id, 'status', 'cancel')
if not job[1] then return {'unknown'} end
if job[1] == 'queued' then
  set(id, 'cancel', 1)
  enter(id, 'canceled', now())
elseif job[1] == 'running' then
  if job[2] ~= '1' then
    set(id, 'cancel', 1)
    say_status(id)
  end
elseif job[1] ~= 'canceled' then
  return {'conflict', job[1]}
end
return {'ok', fields(id)}
