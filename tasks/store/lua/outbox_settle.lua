-- What became of a try.
-- KEYS 1 outbox  2 message  3 outbox-counts  4 record of the job, which may be gone
-- ARGV 1 id  2 number of the try, the fence  3 count to add to, or '' (it was no try after all)
--      4 ms until the next try, or '' when there is none
-- Returns 1, or 0 when another deliverer took the message over
if redis.call('HGET', KEYS[2], 'tries') ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then
  redis.call('HINCRBY', KEYS[3], ARGV[3], 1)
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
return 1
