-- A feeder ended by an exception: count it, and let nobody feed the batch for a while, twice as long each time.
-- KEYS 1 batch  2 open-batches
-- ARGV 1 id  2 epoch  3 pause ms after the first  4 how many it may take  5 why
-- Returns how many broke without any progress in between; 0 when another feeder took over
local batch = redis.call('HMGET', KEYS[1], 'epoch', 'breaks', 'counts', 'counts_at_break')
if batch[1] ~= ARGV[2] or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
local breaks = 1
if batch[2] and (batch[3] or '') == batch[4] then breaks = batch[2] + 1 end
-- The last one is followed at once by the feeder that gives up.
local until_ms = 0
if breaks < tonumber(ARGV[4]) then until_ms = now_ms() + ARGV[3] * 2 ^ (breaks - 1) end
redis.call('HSET', KEYS[1], 'breaks', int(breaks), 'broke_by', ARGV[5], 'counts_at_break', batch[3] or '',
  'lease', int(until_ms))
redis.call('ZADD', KEYS[2], int(until_ms), ARGV[1])
return breaks
