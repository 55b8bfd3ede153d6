-- Take a model off the list of those that may have waiting jobs, unless one came meanwhile.
-- KEYS 1 waiting  2 waiting-models
-- ARGV 1 model
-- Returns 1 when it was taken off
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
return redis.call('SREM', KEYS[2], ARGV[1])
