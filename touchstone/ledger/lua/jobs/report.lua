-- Groups of id, claim, done, total, metric as JSON or ''.
local accepted = {}
for i = 1, #ARGV, 5 do
  local id, claim, done, total, metric = unpack(ARGV, i, i + 4)
  local holds_it = holds_claim(id, claim)
  local kind_of_change = holds_it and record_progress(id, done, total, metric)
  if kind_of_change then record_change(id, kind_of_change) end
  accepted[#accepted + 1] = holds_it and 1 or 0
end
return accepted
