-- queued → running under a new attempt with a lease, if the job is still there to take.
-- KEYS 1 job  2 waiting  3 queued  4 running  5 quarantine
-- ARGV 1 id  2 worker  3 lease ms
-- Returns {'claimed', attempt, seq, request, deadline or ''} | {'taken', state or ''} | {'late'} (deadline passed)
--      | {'quarantined', entry} (since it was admitted)
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' then return {'taken', state or ''} end
local now = now_ms()
local job = redis.call('HMGET', KEYS[1], 'seq', 'request', 'deadline', 'workers', 'digest')
if job[3] and tonumber(job[3]) <= now then return {'late'} end
local entry = job[5] and redis.call('HGET', KEYS[5], 'prompt:' .. job[5])
if entry and tonumber(string.match(entry, '^%d+ (%d+) ')) > now then return {'quarantined', entry} end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'worker', ARGV[2], 'started', int(now),
  'workers', (job[4] and job[4] .. ' ' or '') .. ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[4], int(now + ARGV[3]), ARGV[1])
return {'claimed', attempt, tonumber(job[1]), job[2], job[3] or ''}
