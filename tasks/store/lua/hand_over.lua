-- A queued job goes to its model's fallback, once, and only before its first token was published.
-- KEYS 1 job  2 waiting (old model)  3 waiting (new model)  4 waiting-models  5 queued
-- ARGV 1 id  2 new model
-- Returns the job's priority, or false when it is not there to hand over
local job = redis.call('HMGET', KEYS[1], 'state', 'seq', 'priority', 'model', 'asked_model')
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
if job[1] ~= 'queued' or job[2] ~= '0' or job[5] or not score then return false end
redis.call('HSET', KEYS[1], 'model', ARGV[2], 'asked_model', job[4])
redis.call('HDEL', KEYS[1], 'cache')  -- another model's answer is not to be kept under this one's name
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], score, ARGV[1])
redis.call('SADD', KEYS[4], ARGV[2])
redis.call('ZADD', KEYS[5], int(now_ms()), ARGV[1])
return tonumber(job[3])
