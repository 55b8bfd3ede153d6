-- A client no longer waits for a job. A call that is sent again, because its reply got lost, counts once.
-- KEYS 1 job
-- ARGV 1 id that the client's own job has, or would have had
-- Returns 1 when it was the last one, so that the job is to be cancelled
if redis.call('HEXISTS', KEYS[1], 'clients') == 0 then return 0 end
if redis.call('HDEL', KEYS[1], 'client ' .. ARGV[1]) == 1 then redis.call('HINCRBY', KEYS[1], 'clients', -1) end
return tonumber(redis.call('HGET', KEYS[1], 'clients')) == 0 and 1 or 0
