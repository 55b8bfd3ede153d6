-- running → a terminal state, by the attempt that holds the job.
-- KEYS 1 job  2 stream  3 running  4 deadlines  5 service  6 outbox  7 response
-- ARGV 1 id  2 attempt  3 channel  4 state  5 event  6 result or ''  7 error or ''  8 retention ms
-- Returns 1 when the job is (now, or by an earlier try of this same call) concluded by this attempt, else 0
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'model', 'started')
if job[2] ~= ARGV[2] then return 0 end
if job[1] == ARGV[4] then return 1 end
if job[1] ~= 'running' then return 0 end
conclude(KEYS[1], KEYS[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], KEYS[6], ARGV[1], KEYS[7])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
if ARGV[4] == 'succeeded' then
  -- Mean run time of the model's jobs, each new one with a weight of a tenth (more while there are fewer than ten).
  local now, run_ms, count = now_ms(), 0, 0
  local known = redis.call('HGET', KEYS[5], job[3])
  if known then run_ms, count = string.match(known, '^(%S+) (%d+) ') end
  count = count + 1
  run_ms = run_ms + (now - job[4] - run_ms) / math.min(count, 10)
  redis.call('HSET', KEYS[5], job[3], string.format('%.3f', run_ms) .. ' ' .. int(count) .. ' ' .. int(now))
end
return 1
