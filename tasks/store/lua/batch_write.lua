-- A feeder's word on its batch: lease, progress, and perhaps the next state.
-- KEYS 1 batch  2 open-batches  3 outbox  4 batch-ends
-- ARGV 1 id  2 epoch  3 lease ms, 0 gives the batch up  4 next state or ''  5 states that it may follow
--      6 retention ms when the next state is terminal, else 0  7.. field, value
-- Returns the state now (the old one when the next may not follow it); false when another feeder took over
local batch = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if batch[2] ~= ARGV[2] then return false end
local state = batch[1]
if ARGV[4] ~= '' and state == ARGV[4] then return state end  -- a repeated call: the reply got lost
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return false end
local now = now_ms()
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
local until_ms = tonumber(ARGV[3]) > 0 and int(now + ARGV[3]) or '0'
redis.call('HSET', KEYS[1], 'lease', until_ms)
redis.call('ZADD', KEYS[2], until_ms, ARGV[1])
if ARGV[4] ~= '' and string.find(' ' .. ARGV[5] .. ' ', ' ' .. state .. ' ', 1, true) then
  state = ARGV[4]
  redis.call('HSET', KEYS[1], 'state', state, state .. '_at', int(now))
  if ARGV[6] ~= '0' then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[1], ARGV[6])
    redis.call('HINCRBY', KEYS[4], state, 1)
    if redis.call('HEXISTS', KEYS[1], 'webhook') == 1 then
      announce(KEYS[3], ARGV[1], KEYS[1], int(now),
        {'webhook', 'state', 'metadata', 'created', 'counts', 'output_file', 'error_file'})
    end
  end
end
return state
