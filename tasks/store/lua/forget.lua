-- Let go of jobs that have ended and whose outcome is safe elsewhere. A job that is still open stays as it is: without
-- its record nobody could end it, and its entry in kw:running would be there for ever. Dead letters keep their record.
-- KEYS 1 jobs  2 dead  then for each job: record, stream, idempotency
-- ARGV 1 ms for which records stay  2 prefix of the indexes that the field `tags` names  3.. ids
for i = 3, #ARGV do
  local job, stream, idempotency = KEYS[i * 3 - 6], KEYS[i * 3 - 5], KEYS[i * 3 - 4]
  if redis.call('HEXISTS', job, 'finished') == 1 then
    redis.call('DEL', idempotency)
    if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then
      for _, key in ipairs({job, stream}) do
        if redis.call('PTTL', key) > tonumber(ARGV[1]) then redis.call('PEXPIRE', key, ARGV[1]) end
      end
      redis.call('ZREM', KEYS[1], ARGV[i])
      unlist_besides(job, ARGV[i], ARGV[2])
    end
  end
end
return 0
