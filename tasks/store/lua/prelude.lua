-- Put before every script. Fields of the hash kw:job:{job}; times are integer ms of the store's clock:
--   state, model, priority, attempt (fence), failures (attempts that broke), seq (newest event), created, deadline,
--   started, finished, worker, cancel ("1" when asked for), request, result, error (JSON), workers (JSON-less list
--   "a b c" of the owners so far, for the dead-letter list)

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(n)
  return string.format('%.0f', n)
end

-- Append one numbered event to the stream and tell the live readers.
local function append_event(job, stream, channel, seq, event)
  redis.call('XADD', stream, '0-' .. int(seq), 'e', event)
  redis.call('HSET', job, 'seq', int(seq))
  redis.call('PUBLISH', channel, int(seq) .. ' ' .. event)
end

-- Write the terminal state, the closing event, and the end of retention.
local function conclude(job, stream, channel, state, event, result, err, retention_ms)
  append_event(job, stream, channel, tonumber(redis.call('HGET', job, 'seq')) + 1, event)
  redis.call('HSET', job, 'state', state, 'finished', int(now_ms()))
  if result ~= '' then redis.call('HSET', job, 'result', result) end
  if err ~= '' then redis.call('HSET', job, 'error', err) end
  redis.call('PEXPIRE', job, retention_ms)
  redis.call('PEXPIRE', stream, retention_ms)
end
