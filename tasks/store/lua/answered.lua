-- Write down a job that a cached answer has answered: it begins as succeeded.
-- KEYS 1 job  2 stream  3 jobs  4 idempotency  5 outbox  6 response  7 response-bytes
--      8.. indexes that list the job besides
-- ARGV 1 id  2 retention ms  3 value for the idempotency key or '' (none)  4 life of that key, ms  5 channel  6 result
--      7 ms for which the indexes from 8 on keep an entry
--      8 number of events, then these, then names and values of the record's other fields but times
-- Returns 1, or 0 when the idempotency key is taken by now (nothing written)
if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end  -- this very call, sent again because its reply got lost
if ARGV[3] ~= '' and not redis.call('SET', KEYS[4], ARGV[3], 'PX', ARGV[4], 'NX') then return 0 end
local now, last = now_ms(), tonumber(ARGV[8])
for i = 9 + last, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for seq = 1, last - 1 do redis.call('XADD', KEYS[2], '0-' .. seq, 'e', ARGV[8 + seq]) end
redis.call('HSET', KEYS[1], 'created', int(now), 'seq', last - 1)
redis.call('ZADD', KEYS[3], int(now), ARGV[1])
list_besides(8, ARGV[1], now, ARGV[7])
conclude(KEYS[1], KEYS[2], ARGV[5], 'succeeded', ARGV[8 + last], ARGV[6], '', ARGV[2], KEYS[5], ARGV[1],
  KEYS[6], KEYS[7])
return 1
