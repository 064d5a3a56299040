-- Groups of id, claim, done, total, metric as JSON or ''.
local heard = {}
for i = 1, #ARGV, 5 do
  local id, claim, done, total, metric = unpack(ARGV, i, i + 4)
  local held = holds(id, claim)
  local news = held and note(id, done, total, metric)
  if news then changed(id, news) end
  heard[#heard + 1] = held and 1 or 0
end
return heard
