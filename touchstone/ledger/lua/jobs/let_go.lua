-- id, claim, most strikes, error as JSON. Its worker lives on without it, so the job alone is what did not work.
local id, claim, max_strikes, problem = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local known = get(id, 'let_go')[1]
if known == claim then return 1 end
if not holds_claim(id, claim) then return 0 end
set(id, 'let_go', claim)
lose(id, now(), 1, max_strikes, problem)
return 1
