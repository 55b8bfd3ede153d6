-- running → a terminal state, by the attempt that holds the job.
-- KEYS 1 job  2 stream  3 running  4 deadlines
-- ARGV 1 id  2 attempt  3 channel  4 state  5 event  6 result or ''  7 error or ''  8 retention ms
-- Returns 1 when the job is (now, or by an earlier try of this same call) concluded by this attempt, else 0
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt')
if job[2] ~= ARGV[2] then return 0 end
if job[1] == ARGV[4] then return 1 end
if job[1] ~= 'running' then return 0 end
conclude(KEYS[1], KEYS[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 1
