-- id, claim, status, last report as done, total and metric (or '' three times), then pairs of field and JSON.
-- A cancellation that was granted stays, whatever status comes after it; of a canceled certificate the result so far is kept.
local id, claim, status, done, total, metric = unpack(ARGV, 1, 6)
local job = get(id, 'ended_by', 'cancel', 'kind', 'tenant')
if job[1] == claim then return 1 end
if not holds_claim(id, claim) then return 0 end

set(id, 'ended_by', claim)
if done ~= '' then record_progress(id, done, total, metric) end
local canceled = job[2] == '1'
local counts = not canceled or (job[3] == 'certificate' and status ~= 'failed')
if counts and #ARGV > 6 then
  set(id, unpack(ARGV, 7))
  for_each_artifact(id, add_holder)
  hold_value(job[4], get(id, 'result_blob')[1])
end
set_status(id, canceled and 'canceled' or status, now())
return 1
