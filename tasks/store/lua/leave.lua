-- A client no longer waits for a job.
-- KEYS 1 job
-- Returns 1 when it was the last one, so that the job is to be cancelled
if redis.call('HEXISTS', KEYS[1], 'clients') == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'clients', -1) == 0 and 1 or 0
