-- running → queued: the attempt parked or broke, or (rescue) its lease ran out.
-- KEYS 1 job  2 stream  3 waiting  4 waiting-models  5 queued  6 running  7 deadlines  8 dead
-- ARGV 1 id  2 attempt  3 channel  4 '1' only if the lease has expired  5 '1' if the attempt counts as a failure
--      6 bound on failures  7 closing event for the case that the bound is reached  8 error JSON
--      9 retention ms of dead letters
-- Returns {'queued', model, priority} | {'failed'} | {'lost'}
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'failures', 'model', 'priority', 'created')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then return {'lost'} end
local now = now_ms()
if ARGV[4] == '1' then
  local ends = redis.call('ZSCORE', KEYS[6], ARGV[1])
  if ends and tonumber(ends) > now then return {'lost'} end
end
redis.call('ZREM', KEYS[6], ARGV[1])
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[1], 'last_error', ARGV[8])
  if redis.call('HINCRBY', KEYS[1], 'failures', 1) >= tonumber(ARGV[6]) then
    conclude(KEYS[1], KEYS[2], ARGV[3], 'failed', ARGV[7], '', ARGV[8], ARGV[9])
    redis.call('ZREM', KEYS[7], ARGV[1])
    redis.call('ZADD', KEYS[8], int(now), ARGV[1])
    return {'failed'}
  end
end
redis.call('HSET', KEYS[1], 'state', 'queued')
redis.call('ZADD', KEYS[3], int(tonumber(job[5]) * 1e13 + tonumber(job[6])), ARGV[1])
redis.call('SADD', KEYS[4], job[4])
redis.call('ZADD', KEYS[5], int(now), ARGV[1])
return {'queued', job[4], tonumber(job[5])}
