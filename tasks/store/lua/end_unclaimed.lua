-- queued → cancelled, expired or failed; a running job can only be flagged, its worker ends it.
-- KEYS 1 job  2 stream  3 waiting  4 queued  5 deadlines  6 dead  7 outbox  8 response  9 response-bytes
-- ARGV 1 id  2 channel  3 state  4 event  5 error or ''  6 retention ms  7 '1' to flag a running job
-- Returns {state found, worker or ''}
local job = redis.call('HMGET', KEYS[1], 'state', 'worker')
if job[1] == 'queued' then
  conclude(KEYS[1], KEYS[2], ARGV[2], ARGV[3], ARGV[4], '', ARGV[5], ARGV[6], KEYS[7], ARGV[1], KEYS[8],
    KEYS[9])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
  redis.call('ZREM', KEYS[5], ARGV[1])
  if ARGV[3] == 'failed' then redis.call('ZADD', KEYS[6], int(now_ms()), ARGV[1]) end
elseif job[1] == 'running' and ARGV[7] == '1' then
  redis.call('HSET', KEYS[1], 'cancel', '1')
end
return {job[1] or '', job[2] or ''}
