-- running → queued: the attempt parked or broke, or (rescue) its lease ran out. A job that is to be cancelled ends
-- instead: no later attempt would be told.
-- KEYS 1 job  2 stream  3 waiting  4 waiting-models  5 queued  6 running  7 deadlines  8 dead  9 quarantine
--      10 worker-losses  11 probation  12 broken-attempts  13 outbox  14 response  15 response-bytes
-- ARGV 1 id  2 attempt  3 channel  4 '1' only if the lease has expired  5 '1' if the attempt counts as a failure
--      6 bound on failures  7 closing event for the case that the bound is reached  8 error JSON
--      9 retention ms of dead letters
--      10 bound on runner losses at one place, 0 when this failure is none  11 closing event and  12 error JSON for the
--      case that it is reached  13 quarantine ms  14 name and  15 entry (JSON) of the request in quarantine
--      16 other attempts that broke with the same runner
--      17 closing event of a job that is to be cancelled  18 its retention ms
-- Returns {'queued', model, priority} | {'cancelled'} | {'failed'} | {'quarantined'} | {'lost'}
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'failures', 'model', 'priority', 'created',
  'seq', 'loss_seq', 'worker', 'started', 'runner', 'cancel')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then return {'lost'} end
local now = now_ms()
if ARGV[4] == '1' then
  local ends = redis.call('ZSCORE', KEYS[6], ARGV[1])
  if ends and tonumber(ends) > now then return {'lost'} end
end
redis.call('ZREM', KEYS[6], ARGV[1])
local function close(state, event, err, retention_ms)
  conclude(KEYS[1], KEYS[2], ARGV[3], state, event, '', err, retention_ms, KEYS[13], ARGV[1], KEYS[14], KEYS[15])
  redis.call('ZREM', KEYS[7], ARGV[1])
end
local function bury(event, err)
  close('failed', event, err, ARGV[9])
  redis.call('ZADD', KEYS[8], int(now), ARGV[1])
end
if ARGV[4] == '1' and job[9] then
  redis.call('ZADD', KEYS[10], int(now), job[4] .. ' ' .. job[9] .. ' ' .. job[10])
end
-- Another job that broke with the same runner was on trial, or has just been convicted: this one is not to blame.
local function is_bystander()
  local tried = ARGV[16] ~= '0' and redis.call('HGET', KEYS[11], job[11] or job[4])
  if not tried or tried == ARGV[1] then return false end
  local record = record_of(tried, KEYS[1], ARGV[1])
  local finished = redis.call('HGET', record, 'finished')
  return is_on_trial(record) or (redis.call('HGET', record, 'state') == 'failed' and now - finished < 10000)
end
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[1], 'last_error', ARGV[8])
  redis.call('HINCRBY', KEYS[12], cjson.decode(ARGV[8]).code .. ' ' .. job[4], 1)
end
local failures = 0
if ARGV[5] == '1' and not (ARGV[10] ~= '0' and is_bystander()) then
  failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
  if ARGV[10] ~= '0' then
    if job[8] ~= job[7] then redis.call('HSET', KEYS[1], 'loss_seq', job[7], 'runner_losses', 0) end
    -- In company it takes one loss more: the last one on trial.
    local bound = ARGV[10] + (ARGV[16] == '0' and 0 or 1)
    if redis.call('HINCRBY', KEYS[1], 'runner_losses', 1) >= bound then
      redis.call('HSET', KEYS[9], ARGV[14], int(now) .. ' ' .. int(now + ARGV[13]) .. ' ' .. ARGV[15])
      bury(ARGV[11], ARGV[12])
      return {'quarantined'}
    end
  end
end
if job[12] then
  close('cancelled', ARGV[17], '', ARGV[18])
  return {'cancelled'}
end
if failures >= tonumber(ARGV[6]) then
  bury(ARGV[7], ARGV[8])
  return {'failed'}
end
redis.call('HSET', KEYS[1], 'state', 'queued')
redis.call('ZADD', KEYS[3], int(tonumber(job[5]) * 1e13 + tonumber(job[6])), ARGV[1])
redis.call('SADD', KEYS[4], job[4])
redis.call('ZADD', KEYS[5], int(now), ARGV[1])
return {'queued', job[4], tonumber(job[5])}
