-- worker, most strikes, error as JSON, then the jobs that it was working on when it was lost, as far as that is known. Only
-- these are suspected, else all of them; the others wait again as if they had not been attempted. Returns the jobs.
local worker, max_strikes, problem = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local at, jobs = now(), jobs_of(ARGV[1])
local suspects = {}
for i = 4, #ARGV do
  if contains(jobs, ARGV[i]) then suspects[#suspects + 1] = ARGV[i] end
end
if #suspects == 0 then suspects = jobs end
for _, id in ipairs(jobs) do
  if contains(suspects, id) then
    lose(id, at, #suspects, max_strikes, problem)
  else
    redis.call('HINCRBY', job_key(id), 'attempts', -1)
    queue_again(id, at)
  end
end
return jobs
