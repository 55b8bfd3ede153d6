-- Take due messages for delivery: for a lease no other deliverer sees them, and then, untold, any of them does.
-- KEYS 1 outbox
-- ARGV 1 how many at most  2 lease ms
-- Returns per message {id, number of this try, {field, value, …}}
local now = now_ms()
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now), 'LIMIT', 0, ARGV[1])) do
  local message = KEYS[1] .. ':' .. id
  if redis.call('EXISTS', message) == 0 then
    redis.call('ZREM', KEYS[1], id)
  else
    redis.call('ZADD', KEYS[1], int(now + ARGV[2]), id)
    local try = redis.call('HINCRBY', message, 'tries', 1)
    taken[#taken + 1] = {id, try, redis.call('HGETALL', message)}
  end
end
return taken
