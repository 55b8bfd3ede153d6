-- Take a job in, or say why not. Queued is written only here and in release.lua.
-- KEYS 1 job  2 waiting  3 waiting-models  4 queued  5 jobs  6 deadlines  7 idempotency
-- ARGV 1 id  2 model  3 priority  4 deadline ms or ''  5 request  6 bound per model  7 bound in all
--      8 body digest or '' (no idempotency key)  9 retention ms
-- Returns {'admitted', position} | {'attached', job id} | {'mismatch'} | {'full-model', depth} | {'full', depth}
if ARGV[8] ~= '' then
  local earlier = redis.call('GET', KEYS[7])
  if earlier then
    local id, digest = string.match(earlier, '^(%S+) (%S+)$')
    if digest ~= ARGV[8] then return {'mismatch'} end
    return {'attached', id}
  end
end
local depth = redis.call('ZCARD', KEYS[2])
if depth >= tonumber(ARGV[6]) then return {'full-model', depth} end
local total = redis.call('ZCARD', KEYS[4])
if total >= tonumber(ARGV[7]) then return {'full', total} end

local now = now_ms()
redis.call('HSET', KEYS[1], 'state', 'queued', 'model', ARGV[2], 'priority', ARGV[3], 'attempt', 0, 'failures', 0,
  'seq', 0, 'created', int(now), 'request', ARGV[5])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'deadline', ARGV[4])
  redis.call('ZADD', KEYS[6], ARGV[4], ARGV[1])
end
local score = tonumber(ARGV[3]) * 1e13 + now
redis.call('ZADD', KEYS[2], int(score), ARGV[1])
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[4], int(now), ARGV[1])
redis.call('ZADD', KEYS[5], int(now), ARGV[1])
if ARGV[8] ~= '' then redis.call('SET', KEYS[7], ARGV[1] .. ' ' .. ARGV[8], 'PX', ARGV[9]) end
return {'admitted', redis.call('ZCOUNT', KEYS[2], '-inf', '(' .. int(score))}
