-- ids. A waiting job ends at once; a running one ends after its worker's next renewal. Returns the status of each, '' where
-- there is no such job; one that ended otherwise stays as it is.
local function cancel(id)
  local job = get(id, 'status', 'cancel')
  if job[1] == 'queued' then
    set(id, 'cancel', 1)
    set_status(id, 'canceled', now())
    refund_passes(id)
    return 'canceled'
  end
  if job[1] == 'running' and job[2] ~= '1' then
    set(id, 'cancel', 1)
    record_status(id)
  end
  return job[1] or ''
end

local statuses = {}
for position, id in ipairs(ARGV) do
  statuses[position] = cancel(id)
end
return statuses
