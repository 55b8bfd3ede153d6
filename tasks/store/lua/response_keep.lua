-- Keep a response, or note that nothing of it is to be kept; before its job is admitted.
-- KEYS 1 record  2 responses  3 response-bytes
-- ARGV 1 id of the job  2 StoredResponse JSON without echo, or '' (keep nothing)  3 id of the previous response's job or ''
--      4 retention ms of the record, from now and again from its end
--      5 retention ms of a job of which nothing is kept  6 bound on kept responses  7 prefix of records  8 echo (JSON)
--      9 bound on the bytes of all kept responses
local OWN_BYTES = 512  -- what a response takes besides its text: names and values of its fields, its places in two indexes
local MOST_DROPPED = 256  -- per call, so that no call takes long; most need to drop one

redis.call('DEL', KEYS[1])
unlist_response(KEYS[2], KEYS[3], ARGV[1])
if ARGV[2] == '' then
  redis.call('HSET', KEYS[1], 'linger', ARGV[5])
else
  local now = now_ms()
  redis.call('HSET', KEYS[1], 'response', ARGV[2], 'echo', ARGV[8], 'previous', ARGV[3],
    'retention', ARGV[4])
  -- Beyond the bounds the oldest ones go. This one is not counted yet: should its job be refused, none has gone for it.
  for _ = 1, MOST_DROPPED do
    local id, ends = unpack(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES'))
    if not id then break end
    if tonumber(ends) > now then
      if redis.call('ZCARD', KEYS[2]) <= tonumber(ARGV[6])
        and tonumber(redis.call('HGET', KEYS[3], 'all') or 0) <= tonumber(ARGV[9]) then break end
      redis.call('DEL', ARGV[7] .. id)
      redis.call('HINCRBY', KEYS[3], 'evicted', 1)
    end
    unlist_response(KEYS[2], KEYS[3], id)
  end
  redis.call('ZADD', KEYS[2], int(now + ARGV[4]), ARGV[1])
  redis.call('HSET', KEYS[3], ARGV[1], 0)
  count_response(KEYS[3], ARGV[1], OWN_BYTES + #ARGV[2] + #ARGV[8])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 0
