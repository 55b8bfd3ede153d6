-- Take a job in, or say why not. Queued is written only here and in release.lua.
-- KEYS 1 job  2 waiting  3 waiting-models  4 queued  5 jobs  6 deadlines  7 idempotency  8 dead  9 job to repeat, or 1
--      10 quarantine  11 arrivals  12 list of the wake-up  13 computing  14 answer
--      15 answers-used  16 cache-counts  17.. indexes that list the job besides
-- ARGV 1 id  2 model  3 priority  4 deadline ms or ''  5 request  6 bound per model  7 bound in all
--      8 body digest or '' (no idempotency key)  9 life of the idempotency key, ms
--      10 id of the job to repeat or ''  11 request digest
--      12 '1' when only an earlier call may be answered  13 wake-up, or '' (the caller sends it)  14 channel
--      15 digest of the answer or '' (not to be cached)  16 note for it in the record
--      17 '1' when the job ends with its clients, and so may be another one's
--      18 '1' to follow a job that computes the same
--      19 ms for which the indexes from 17 on keep an entry
--      20 how many further fields the record has, then these: name, value; then names under which quarantine may
--      know the request
-- Returns {'admitted', position, created, 1 when somebody listens to the channel already, jobs that wait for the model
--      now, jobs that wait in all}
--      | {'hit', answer, now} | {'shared', job id, now} | {'attached', job id} | {'mismatch'} | {'full-model', depth}
--      | {'full', depth} | {'not-repeatable', state or ''} | {'quarantined', entry, ms left} | {'refused'} (by the
--      caller, and neither an earlier call nor the cache has an answer)
-- 1  An earlier call did it: with the same idempotency key, or it repeated the same job. The record of that job
--    may be gone before its key; then this is a new request. A repetition that ended badly may be repeated too.
local function state_of(id)
  return redis.call('HGET', record_of(id, KEYS[1], ARGV[1]), 'state')
end
local function ended_badly(state)
  return state == 'failed' or state == 'cancelled' or state == 'expired'
end
-- 0  This very call, sent again because its reply got lost: the job is in, and a worker may have it by now.
if redis.call('EXISTS', KEYS[1]) == 1 then
  local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
  local position = score and redis.call('ZCOUNT', KEYS[2], '-inf', '(' .. score) or 0
  return {'admitted', position, tonumber(redis.call('HGET', KEYS[1], 'created')), 0, redis.call('ZCARD', KEYS[2]),
    redis.call('ZCARD', KEYS[4])}
end
if ARGV[8] ~= '' then
  local earlier = redis.call('GET', KEYS[7])
  if earlier then
    local id, digest = string.match(earlier, '^(%S+) (%S+)$')
    if state_of(id) then
      if digest ~= ARGV[8] then return {'mismatch'} end
      return {'attached', id}
    end
  end
end
if ARGV[10] ~= '' then
  local origin = redis.call('HMGET', KEYS[9], 'state', 'requeued_as')
  local repeated = origin[2] and state_of(origin[2])
  if repeated and not ended_badly(repeated) then return {'attached', origin[2]} end
  if not ended_badly(origin[1]) then return {'not-repeatable', origin[1] or ''} end
end
local now = now_ms()
-- 2  The answer is there, or on its way by a job that a client of this one may wait for: not one that is being
--    cancelled, that its own clients have left, that waits in a later class, or that gives way to others also when it
--    runs, as batch work does.
local BATCH = 6
local function can_follow(job)
  if not job[4] or job[3] or (job[5] and tonumber(job[5]) <= 0) then return false end
  local priority = tonumber(job[2] or BATCH)
  local is_in_time = priority <= tonumber(ARGV[3])
  return (job[1] == 'queued' and is_in_time) or (job[1] == 'running' and (is_in_time or priority < BATCH))
end
if ARGV[15] ~= '' then
  local answer = redis.call('GET', KEYS[14])
  if answer then
    redis.call('ZADD', KEYS[15], 'XX', int(now), ARGV[15])
    redis.call('HINCRBY', KEYS[16], 'hit ' .. ARGV[2], 1)
    return {'hit', answer, now}
  end
  local other = ARGV[18] == '1' and redis.call('GET', KEYS[13])
  if other then
    local record = record_of(other, KEYS[1], ARGV[1])
    local job = redis.call('HMGET', record, 'state', 'priority', 'cancel', 'cache', 'clients')
    if can_follow(job) then
      if not job[5] or redis.call('HSETNX', record, 'client ' .. ARGV[1], 1) == 1 then
        if job[5] then redis.call('HINCRBY', record, 'clients', 1) end
        redis.call('HINCRBY', KEYS[16], 'shared ' .. ARGV[2], 1)
      end
      return {'shared', other, now}
    end
  end
end
if ARGV[12] == '1' then return {'refused'} end
-- 3  Quarantine.
local first_name = 21 + 2 * ARGV[20]
for i = first_name, #ARGV do
  local entry = redis.call('HGET', KEYS[10], ARGV[i])
  local left_ms = entry and string.match(entry, '^%d+ (%d+) ') - now
  if left_ms and left_ms > 0 then return {'quarantined', entry, left_ms} end
end
-- 4  The bounds.
local depth = redis.call('ZCARD', KEYS[2])
if depth >= tonumber(ARGV[6]) then return {'full-model', depth} end
local total = redis.call('ZCARD', KEYS[4])
if total >= tonumber(ARGV[7]) then return {'full', total} end

-- 5  In.
redis.call('HSET', KEYS[1], 'state', 'queued', 'model', ARGV[2], 'priority', ARGV[3], 'attempt', 0, 'failures', 0,
  'seq', 0, 'created', int(now), 'request', ARGV[5], 'digest', ARGV[11])
for i = 21, first_name - 1, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'deadline', ARGV[4])
  redis.call('ZADD', KEYS[6], ARGV[4], ARGV[1])
end
local score = tonumber(ARGV[3]) * 1e13 + now
redis.call('ZADD', KEYS[2], int(score), ARGV[1])
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('HINCRBY', KEYS[11], ARGV[3] .. ' ' .. ARGV[2], 1)
redis.call('ZADD', KEYS[4], int(now), ARGV[1])
redis.call('ZADD', KEYS[5], int(now), ARGV[1])
list_besides(17, ARGV[1], now, ARGV[19])
if ARGV[8] ~= '' then redis.call('SET', KEYS[7], ARGV[1] .. ' ' .. ARGV[8], 'PX', ARGV[9]) end
if ARGV[10] ~= '' then
  redis.call('HSET', KEYS[1], 'requeued_from', ARGV[10])
  redis.call('HSET', KEYS[9], 'requeued_as', ARGV[1])
  redis.call('ZREM', KEYS[8], ARGV[10])
end
if ARGV[15] ~= '' then
  redis.call('HSET', KEYS[1], 'cache', ARGV[16])
  if ARGV[17] == '1' then redis.call('HSET', KEYS[1], 'clients', 1, 'client ' .. ARGV[1], 1) end
  redis.call('SET', KEYS[13], ARGV[1], 'PX', 3600000)
  redis.call('HINCRBY', KEYS[16], 'miss ' .. ARGV[2], 1)
end
if ARGV[13] ~= '' then redis.call('LPUSH', KEYS[12], ARGV[13]) end
local is_heard = redis.call('PUBSUB', 'NUMSUB', ARGV[14])[2] > 0
return {'admitted', redis.call('ZCOUNT', KEYS[2], '-inf', '(' .. int(score)), now, is_heard and 1 or 0, depth + 1, total + 1}
