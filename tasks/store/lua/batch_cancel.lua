-- Ask the feeder of a batch to stop; it sees the state when it renews its lease.
-- KEYS 1 batch
-- ARGV 1 states from which that is possible  2 the state to write
-- Returns 1 when written
local state = redis.call('HGET', KEYS[1], 'state')
if not state or not string.find(' ' .. ARGV[1] .. ' ', ' ' .. state .. ' ', 1, true) then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], ARGV[2] .. '_at', int(now_ms()))
return 1
