-- Delete a response and its job. A job that has not ended leaves a note that ends its retention when it does.
-- KEYS 1 record  2 responses  3 job  4 stream  5 jobs  6 dead  7 response-bytes
-- ARGV 1 id of the job  2 retention ms of a job of which nothing is kept  3 life of the note, ms
--      4 prefix of the indexes that the field `tags` of the job names
-- Returns 1 when the job is still to be cancelled
redis.call('DEL', KEYS[1])
unlist_response(KEYS[2], KEYS[7], ARGV[1])
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
if redis.call('HEXISTS', KEYS[3], 'finished') == 1 then
  unlist_besides(KEYS[3], ARGV[1], ARGV[4])
  redis.call('DEL', KEYS[3], KEYS[4])
  redis.call('ZREM', KEYS[5], ARGV[1])
  redis.call('ZREM', KEYS[6], ARGV[1])
  return 0
end
redis.call('HSET', KEYS[1], 'linger', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
