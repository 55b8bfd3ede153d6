-- Look after one model's line. A job waits before its wake-up is pushed, or from that very step on; so a wake-up whose
-- job does not wait now is of no use. Workers pop such ones and drop them, but where no runner is ready, nobody pops.
-- KEYS 1 waiting  2 waiting-models  3 queued  4.. lists of the model's wake-ups
-- ARGV 1 model  2 how many useless wake-ups may stay, besides one for each job that waits
-- Returns {jobs that wait, wake-ups}. Without any the model is off the list of those that may have waiting jobs.
local waiting, wakeups = redis.call('ZCARD', KEYS[1]), 0
if waiting == 0 then
  redis.call('SREM', KEYS[2], ARGV[1])
  redis.call('DEL', unpack(KEYS, 4))
  return {0, 0}
end
for i = 4, #KEYS do wakeups = wakeups + redis.call('LLEN', KEYS[i]) end

-- An entry of a job that is not queued would be waited for for ever.
if waiting > wakeups then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if not redis.call('ZSCORE', KEYS[3], id) then waiting = waiting - redis.call('ZREM', KEYS[1], id) end
  end
end

-- Of the oldest ones, which are on the right, keep one for each job that waits. Looking at so many takes out as many as
-- may stay, or more; so the work is in proportion to what goes.
local useless = waiting + ARGV[2]
if wakeups > waiting + useless then
  wakeups = 0
  local is_woken = {}
  for i = 4, #KEYS do
    local oldest, kept = redis.call('LRANGE', KEYS[i], -waiting - useless, -1), {}
    for j = #oldest, 1, -1 do
      local start = string.find(oldest[j], "('", 1, true)  -- the task's `argsrepr`
      local id = start and string.match(oldest[j], "^%('([^']+)',%)", start)
      local is_needed = id and not is_woken[id] and redis.call('ZSCORE', KEYS[1], id)
      if is_needed then is_woken[id] = true end
      if is_needed or not id then kept[#kept + 1] = oldest[j] end
    end
    redis.call('LTRIM', KEYS[i], 0, -1 - #oldest)
    for j = #kept, 1, -1 do redis.call('RPUSH', KEYS[i], kept[j]) end
    wakeups = wakeups + redis.call('LLEN', KEYS[i])
  end
end
return {waiting, wakeups}
