-- id, claim, status, then pairs of field and JSON. A cancellation that was granted is kept, whatever came after it.
local id, claim, status = ARGV[1], ARGV[2], ARGV[3]
local job = get(id, 'ended_by', 'cancel')
if job[1] == claim then return 1 end
if not holds(id, claim) then return 0 end

set(id, 'ended_by', claim)
if job[2] == '1' then
  enter(id, 'canceled', now())
  return 1
end
if #ARGV > 3 then set(id, unpack(ARGV, 4)) end
enter(id, status, now())
return 1
