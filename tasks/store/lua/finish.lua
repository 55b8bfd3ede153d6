-- running → a terminal state, by the attempt that holds the job.
-- KEYS 1 job  2 stream  3 running  4 deadlines  5 service  6 outbox  7 response
--      8 answer of the empty digest  9 answers-used  10 answers-expiry  11 answer-bytes  12 cache-counts
--      13 response-bytes
-- ARGV 1 id  2 attempt  3 channel  4 state  5 event  6 result or ''  7 error or ''  8 retention ms
--      9 bound on the bytes of all answers  10 seq of an event to publish before the closing one, or ''  11 that event
-- Returns 1 when the job is (now, or by an earlier try of this same call) concluded by this attempt, else 0
local KEY_BYTES = 512  -- what an answer takes besides its text: its key, and its places in four indexes
local SHORTEST_EVENT = 20  -- bytes

-- Keep the events since the last reset as one value, a line each, for as long as the note in the record says.
local function keep_answer(digest, ttl_ms, max_bytes)
  if redis.call('XLEN', KEYS[2]) * SHORTEST_EVENT > max_bytes then return end
  local events, bytes = {}, KEY_BYTES
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
    local event = entry[2][2]
    if string.sub(event, 1, 15) == '{"type":"reset"' then
      events, bytes = {}, KEY_BYTES
    else
      events[#events + 1] = event
      bytes = bytes + #event + 1
    end
  end
  local bound, now = tonumber(ARGV[9]), now_ms()
  if bytes > math.min(max_bytes, bound) then return end
  local answers = {KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]}
  drop_answer(answers, digest)
  if not make_room(answers, now, bound - bytes) then return end
  redis.call('SET', KEYS[8] .. digest, table.concat(events, '\n'), 'PX', ttl_ms)
  redis.call('ZADD', KEYS[9], int(now), digest)
  redis.call('ZADD', KEYS[10], int(now + ttl_ms), digest)
  redis.call('HSET', KEYS[11], digest, bytes)
  redis.call('HINCRBY', KEYS[12], 'bytes', bytes)
end

local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'model', 'started', 'cache', 'seq')
if job[2] ~= ARGV[2] then return 0 end
if job[1] == ARGV[4] then return 1 end
if job[1] ~= 'running' then return 0 end
if ARGV[10] ~= '' then
  if tonumber(ARGV[10]) ~= tonumber(job[6]) + 1 then return 0 end  -- events before it are gone: as in append.lua
  append_event(KEYS[1], KEYS[2], ARGV[3], tonumber(ARGV[10]), ARGV[11])
end
conclude(KEYS[1], KEYS[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], KEYS[6], ARGV[1], KEYS[7],
  KEYS[13])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
if ARGV[4] == 'succeeded' then
  if job[5] then
    local digest, ttl_ms, max_bytes = string.match(job[5], '^(%S+) %S+ (%d+) (%d+)$')
    keep_answer(digest, tonumber(ttl_ms), tonumber(max_bytes))
  end
  -- Mean run time of the model's jobs, each new one with a weight of a tenth (more while there are fewer than ten).
  local now, run_ms, count = now_ms(), 0, 0
  local known = redis.call('HGET', KEYS[5], job[3])
  if known then run_ms, count = string.match(known, '^(%S+) (%d+) ') end
  count = count + 1
  run_ms = run_ms + (now - job[4] - run_ms) / math.min(count, 10)
  redis.call('HSET', KEYS[5], job[3], string.format('%.3f', run_ms) .. ' ' .. int(count) .. ' ' .. int(now))
end
return 1
