-- queued → running under a new attempt with a lease, if the job is still there to take.
-- KEYS 1 job  2 waiting  3 queued  4 running  5 quarantine  6 probation
-- ARGV 1 id  2 worker  3 lease ms  4 token of this call: sent again because its reply got lost, it gets the same reply
--      5 channel, for the notice that an attempt began  6 fingerprint of the model as this worker has it
--      7 model whose runner it is: its own, or the base of an adapter
-- Returns {'claimed', attempt, seq, request, deadline or ''} | {'taken', state or ''} | {'late'} (deadline passed)
--      | {'quarantined', entry} (since it was admitted) | {'not-yet'} (a suspect, and another one is on trial)
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'running' and redis.call('HGET', KEYS[1], 'claim') == ARGV[4] then
  local mine = redis.call('HMGET', KEYS[1], 'attempt', 'seq', 'request', 'deadline')
  return {'claimed', tonumber(mine[1]), tonumber(mine[2]), mine[3], mine[4] or ''}
end
if state ~= 'queued' then return {'taken', state or ''} end
-- A wake-up from before the job was handed over to another model.
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return {'taken', state} end
local now = now_ms()
local job = redis.call('HMGET', KEYS[1], 'seq', 'request', 'deadline', 'workers', 'digest', 'runner_losses', 'loss_seq')
if job[3] and tonumber(job[3]) <= now then return {'late'} end
local entry = job[5] and redis.call('HGET', KEYS[5], 'prompt:' .. job[5])
if entry and tonumber(string.match(entry, '^%d+ (%d+) ')) > now then return {'quarantined', entry} end
if is_suspect(job[6], job[7], job[1]) then
  local tried = redis.call('HGET', KEYS[6], ARGV[7])
  if tried and tried ~= ARGV[1] and is_on_trial(record_of(tried, KEYS[1], ARGV[1])) then
    redis.call('ZADD', KEYS[3], 0, ARGV[1])  -- overdue: the controller's next tick wakes it again
    return {'not-yet'}
  end
  redis.call('HSET', KEYS[6], ARGV[7], ARGV[1])
end
-- The answer is kept only if every attempt at it had the very file that the key of the answer names.
local cache = redis.call('HGET', KEYS[1], 'cache')
if cache and string.match(cache, '^%S+ (%S+) ') ~= ARGV[6] then redis.call('HDEL', KEYS[1], 'cache') end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'worker', ARGV[2], 'claim', ARGV[4], 'started', int(now),
  'runner', ARGV[7], 'workers', (job[4] and job[4] .. ' ' or '') .. ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[4], int(now + ARGV[3]), ARGV[1])
redis.call('PUBLISH', ARGV[5], '0 ' .. cjson.encode({type = 'started', attempt = attempt, worker = ARGV[2]}))
return {'claimed', attempt, tonumber(job[1]), job[2], job[3] or ''}
