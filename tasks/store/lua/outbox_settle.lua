-- What became of a try.
-- KEYS 1 outbox  2 message  3 outbox-counts  4 record of the job, which may be gone  5 dead-webhooks
--      6 dead-webhook-entries
-- ARGV 1 id  2 number of the try, the fence  3 count to add to, or '' (it was no try after all)
--      4 ms until the next try, or '' when there is none  5 entry (JSON) of one that is given up, or ''
--      6 ms for which those are kept  7 how many at most
-- Returns 1, or 0 when another deliverer took the message over
local function forget_dead(ids)
  for _, id in ipairs(ids) do
    redis.call('ZREM', KEYS[5], id)
    redis.call('HDEL', KEYS[6], id)
  end
end

if redis.call('HGET', KEYS[2], 'tries') ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then
  redis.call('HINCRBY', KEYS[3], ARGV[3], 1)
  if redis.call('EXISTS', KEYS[4]) == 1 then
    redis.call('HSET', KEYS[4], 'webhook_tries', ARGV[2], 'webhook_last', string.match(ARGV[3], '%S+$'))
  end
else
  redis.call('HINCRBY', KEYS[2], 'tries', -1)
end
if ARGV[4] ~= '' then
  redis.call('ZADD', KEYS[1], int(now_ms() + ARGV[4]), ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[2])
  if redis.call('EXISTS', KEYS[4]) == 1 then
    redis.call('HSET', KEYS[4], 'webhook_delivered', ARGV[3] == 'delivered' and '1' or '0')
  end
end
if ARGV[5] ~= '' then
  local now = now_ms()
  redis.call('ZADD', KEYS[5], int(now), ARGV[1])
  redis.call('HSET', KEYS[6], ARGV[1], ARGV[5])
  forget_dead(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', int(now - ARGV[6])))
  forget_dead(redis.call('ZRANGE', KEYS[5], 0, -1 - ARGV[7]))
  redis.call('PEXPIRE', KEYS[5], ARGV[6])
  redis.call('PEXPIRE', KEYS[6], ARGV[6])
end
return 1
