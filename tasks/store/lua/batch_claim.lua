-- Make this feeder the one that feeds a batch, if nobody else does.
-- KEYS 1 batch  2 open-batches
-- ARGV 1 id  2 feeder  3 lease ms
-- Returns the epoch, which is the fence of its writes; 0 when another one feeds it or the batch is over
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) or redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local now = now_ms()
local held = redis.call('HMGET', KEYS[1], 'feeder', 'lease', 'epoch')
if held[1] == ARGV[2] and tonumber(held[2]) > now then return tonumber(held[3]) end  -- the reply got lost
if held[2] and tonumber(held[2]) > now then return 0 end
redis.call('HSET', KEYS[1], 'feeder', ARGV[2], 'lease', int(now + ARGV[3]))
redis.call('ZADD', KEYS[2], int(now + ARGV[3]), ARGV[1])
return redis.call('HINCRBY', KEYS[1], 'epoch', 1)
