-- Write the desired placement, if the writer still leads and nobody wrote a newer one.
-- KEYS 1 placement  2 leader  3 leader-epoch
-- ARGV 1 own id  2 leadership epoch  3 placement JSON  4 placement epoch
-- Returns 1 when written
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end
local old = redis.call('GET', KEYS[1])
if old and cjson.decode(old).epoch >= tonumber(ARGV[4]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
return 1
