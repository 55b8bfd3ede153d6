-- Running jobs whose lease has ended. Entries without a running job (its record was lost or evicted) are taken out on
-- the way, so that they never stand before those that can be rescued.
-- KEYS 1 running
-- ARGV 1 how many at most  2 prefix of job keys
-- Returns id, attempt and worker of each, flat
local found, kept, now = {}, 0, int(now_ms())
while kept < tonumber(ARGV[1]) do
  local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', kept, ARGV[1] - kept)
  if #due == 0 then break end
  for _, id in ipairs(due) do
    local job = redis.call('HMGET', ARGV[2] .. id, 'state', 'attempt', 'worker')
    if job[1] == 'running' then
      kept = kept + 1
      for _, value in ipairs({id, job[2], job[3]}) do found[#found + 1] = value end
    else
      redis.call('ZREM', KEYS[1], id)
    end
  end
end
return found
