-- Prolong the leases of one worker's attempts.
-- KEYS 1 running  2.. job of each attempt
-- ARGV 1 lease ms, then per attempt: id, attempt
-- Returns per attempt 0 ok, 1 ok but the job is to be cancelled, 2 lost
local until_ms = int(now_ms() + ARGV[1])
local verdicts = {}
for i = 2, #KEYS do
  local id, attempt = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local job = redis.call('HMGET', KEYS[i], 'state', 'attempt', 'cancel')
  if job[1] ~= 'running' or job[2] ~= attempt then
    verdicts[i - 1] = 2
  else
    redis.call('ZADD', KEYS[1], until_ms, id)
    verdicts[i - 1] = job[3] and 1 or 0
  end
end
return verdicts
