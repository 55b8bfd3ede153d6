-- Keep a response, or note that nothing of it is to be kept; before its job is admitted.
-- KEYS 1 record  2 responses
-- ARGV 1 id of the job  2 StoredResponse JSON without echo, or '' (keep nothing)  3 id of the previous response's job or ''
--      4 retention ms of the record, from now and again from its end
--      5 retention ms of a job of which nothing is kept  6 bound on kept responses  7 prefix of records  8 echo (JSON)
redis.call('DEL', KEYS[1])
if ARGV[2] == '' then
  redis.call('HSET', KEYS[1], 'linger', ARGV[5])
else
  local now = now_ms()
  redis.call('HSET', KEYS[1], 'response', ARGV[2], 'echo', ARGV[8], 'previous', ARGV[3],
    'retention', ARGV[4])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', int(now))
  -- Beyond the bound the oldest ones go. This one is not counted yet: should its job be refused, none has gone for it.
  local excess = redis.call('ZCARD', KEYS[2]) - ARGV[6]
  if excess > 0 then
    for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, excess - 1)) do
      redis.call('DEL', ARGV[7] .. id)
      redis.call('ZREM', KEYS[2], id)
    end
  end
  redis.call('ZADD', KEYS[2], int(now + ARGV[4]), ARGV[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 0
