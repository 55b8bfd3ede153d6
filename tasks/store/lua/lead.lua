-- Take or keep the leadership of the controllers.
-- KEYS 1 leader  2 leader-epoch
-- ARGV 1 own id  2 lease ms
-- Returns the epoch of this leadership, 0 when somebody else leads
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if leader then return tonumber(redis.call('GET', KEYS[2])) end
return redis.call('INCR', KEYS[2])
