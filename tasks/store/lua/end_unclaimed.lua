-- queued → cancelled, expired or failed; a running job can only be flagged, its worker ends it.
-- The record says in which line it waits: a caller that looked that up before may be behind a hand-over.
-- KEYS 1 job  2 stream  3 queued  4 deadlines  5 dead  6 outbox  7 response  8 response-bytes
-- ARGV 1 id  2 channel  3 state  4 event  5 error or ''  6 retention ms  7 '1' to flag a running job
--      8 prefix of the keys of waiting jobs
-- Returns {state found, worker or ''}; without a record {'', ''}
local job = redis.call('HMGET', KEYS[1], 'state', 'worker', 'model')
if job[1] == 'queued' then
  conclude(KEYS[1], KEYS[2], ARGV[2], ARGV[3], ARGV[4], '', ARGV[5], ARGV[6], KEYS[6], ARGV[1], KEYS[7],
    KEYS[8])
  redis.call('ZREM', ARGV[8] .. job[3], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
  if ARGV[3] == 'failed' then redis.call('ZADD', KEYS[5], int(now_ms()), ARGV[1]) end
elseif job[1] == 'running' and ARGV[7] == '1' then
  redis.call('HSET', KEYS[1], 'cancel', '1')
end
return {job[1] or '', job[2] or ''}
