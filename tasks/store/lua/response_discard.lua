-- Forget a response whose job was not admitted after all. If it was, and only the reply got lost, the record stays.
-- KEYS 1 record  2 responses  3 response-bytes  4 job
-- ARGV 1 id of the job
if redis.call('EXISTS', KEYS[4]) == 0 then
  redis.call('DEL', KEYS[1])
  unlist_response(KEYS[2], KEYS[3], ARGV[1])
end
return 0
