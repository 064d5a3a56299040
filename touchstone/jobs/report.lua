-- Groups of id, claim, done, total, metric as JSON or ''. Progress that would go back is left out.
local heard = {}
for i = 1, #ARGV, 5 do
  local id, claim, done, total, metric = unpack(ARGV, i, i + 4)
  local held = holds(id, claim)
  if held then
    local before = get(id, 'done', 'total')
    local forward = tonumber(done) >= tonumber(before[1])
    if forward and (done ~= before[1] or total ~= before[2]) then
      set(id, 'done', done, 'total', total)
      say(id, 'progress', cjson.encode({done = tonumber(done), total = tonumber(total)}))
      changed(id)
    end
    if metric ~= '' then
      say(id, 'metric', metric)
      changed(id)
    end
  end
  heard[#heard + 1] = held and 1 or 0
end
return heard
