-- Publish one event for each of several jobs: all that an engine step produced.
-- KEYS per chunk: job, stream
-- ARGV per chunk: attempt, seq, channel, event
-- Returns per chunk 0 ok, 1 ok but the job is to be cancelled, 2 lost (nothing written).
-- A repeated call (the reply got lost) is recognised by its seq and writes nothing twice.
local verdicts = {}
for i = 1, #KEYS / 2 do
  local key, stream = KEYS[2 * i - 1], KEYS[2 * i]
  local attempt, seq, channel, event = ARGV[4 * i - 3], tonumber(ARGV[4 * i - 2]), ARGV[4 * i - 1], ARGV[4 * i]
  local job = redis.call('HMGET', key, 'state', 'attempt', 'seq', 'cancel')
  if job[1] ~= 'running' or job[2] ~= attempt or seq > tonumber(job[3]) + 1 then
    verdicts[i] = 2
  else
    if seq == tonumber(job[3]) + 1 then append_event(key, stream, channel, seq, event) end
    verdicts[i] = job[4] and 1 or 0
  end
end
return verdicts
