-- Put before every script. Fields of the hash kw:job:{job}; times are integer ms of the store's clock:
--   state, model, priority, created, deadline, request (JSON)
--   attempt (fence), started, worker, runner (whose model is the job's or the base of its adapter) and claim (token of
--   the call) of the newest attempt
--   workers (owners so far, oldest first: "a b c")
--   failures (attempts that broke), last_error (JSON: why the newest of them did)
--   digest (of the request without its seed), runner_losses (in a row at the place loss_seq: seq when the runner died)
--   seq (newest event), cancel ("1" when asked for), finished, result (JSON), error (JSON: why the job has none)
--   asked_model (what the client asked for, when the job was handed over to that model's fallback)
--   cache (digest, model fingerprint, ttl ms, bound on bytes: where the answer will be kept; see answer_cache.py)
--   clients (how many wait for it and would miss it; a job without the field is there for itself), and for each of
--   these a field `client <id>` with the id of the job that it would have had
--   requeued_from, requeued_as (ids of the job that this one repeats, and of the one that repeats it)
--   metadata (JSON), webhook (JSON: where to say that the job has ended), webhook_delivered ("0": given up),
--   webhook_tries and webhook_last (what came of the newest: delivered, or why not), batch (whose line the job answers),
--   tags (of the indexes kw:tagged:{tag} that list it: "a b c")

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

-- List a job in the indexes that the script's keys from `first` on name, and keep those as short as the list of all.
local function list_besides(first, id, now, keep_ms)
  for i = first, #KEYS do
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', int(now - keep_ms))
    redis.call('ZADD', KEYS[i], int(now), id)
    redis.call('PEXPIRE', KEYS[i], keep_ms)
  end
end

-- Take a job out of the indexes that its field `tags` names; `prefix` is that of their keys.
local function unlist_besides(job, id, prefix)
  for tag in string.gmatch(redis.call('HGET', job, 'tags') or '', '%S+') do
    redis.call('ZREM', prefix .. tag, id)
  end
end

-- Put the news that a job or a batch has ended into the outbox. The message copies what will be said of the record,
-- which may be gone before the last try.
local function announce(outbox, id, record, ended_ms, names)
  local message = outbox .. ':' .. id
  local values = redis.call('HMGET', record, unpack(names))
  redis.call('HSET', message, 'ended', ended_ms, 'tries', 0)
  for i, name in ipairs(names) do
    if values[i] then redis.call('HSET', message, name, values[i]) end
  end
  redis.call('ZADD', outbox, ended_ms, id)
end

-- What stored responses count for: the hash response-bytes has the bytes of each that is listed in `responses`, and their
-- sum as `all`. One that left the list is not counted again.
local function count_response(sizes, id, more)
  if redis.call('HEXISTS', sizes, id) == 0 then return end
  redis.call('HINCRBY', sizes, id, more)
  redis.call('HINCRBY', sizes, 'all', more)
end

local function unlist_response(responses, sizes, id)
  redis.call('ZREM', responses, id)
  count_response(sizes, id, -(redis.call('HGET', sizes, id) or 0))
  redis.call('HDEL', sizes, id)
end

-- Write the terminal state, the closing event, the end of retention, and the webhook if the client wants one.
-- A response (/v1/responses) keeps the outcome for longer than its job; of one that is not to be stored, the job goes
-- soon too.
local function conclude(job, stream, channel, state, event, result, err, retention_ms, outbox, id, response,
                        response_bytes)
  local known = redis.call('HMGET', job, 'seq', 'webhook')
  append_event(job, stream, channel, tonumber(known[1]) + 1, event)
  local now = int(now_ms())
  redis.call('HSET', job, 'state', state, 'finished', now)
  if known[2] then
    announce(outbox, id, job, now, {'webhook', 'state', 'model', 'metadata', 'created'})
    redis.call('HSET', outbox .. ':' .. id, 'event', event)
  end
  if result ~= '' then redis.call('HSET', job, 'result', result) end
  if err ~= '' then redis.call('HSET', job, 'error', err) end
  local kept = redis.call('HMGET', response, 'retention', 'linger')
  if kept[1] then
    local head = redis.call('HMGET', job, 'model', 'created')
    redis.call('HSET', response, 'state', state, 'model', head[1], 'created', head[2], 'finished', now,
      'result', result, 'error', err)
    redis.call('PEXPIRE', response, kept[1])
    count_response(response_bytes, id, #result + #err)
  elseif kept[2] then
    retention_ms = kept[2]
    redis.call('DEL', response)
  end
  redis.call('PEXPIRE', job, retention_ms)
  redis.call('PEXPIRE', stream, retention_ms)
end

-- Key of another job's record, made from that of this one.
local function record_of(id, own_key, own_id)
  return string.sub(own_key, 1, -1 - #own_id) .. id
end

-- Suspect: its runner died twice or more at the same place, each time in company, and it got no further since.
-- Suspects of a runner are tried one at a time, so that the next loss convicts the right one.
local function is_suspect(runner_losses, loss_seq, seq)
  return runner_losses and tonumber(runner_losses) >= 2 and loss_seq == seq
end

local function is_on_trial(record)
  local job = redis.call('HMGET', record, 'state', 'runner_losses', 'loss_seq', 'seq')
  return job[1] == 'running' and is_suspect(job[2], job[3], job[4])
end

-- Cached answers. `answers`: the keys {answer of the empty digest, answers-used, answers-expiry, answer-bytes, counts}.
local function drop_answer(answers, digest)
  local bytes = redis.call('HGET', answers[4], digest)
  if not bytes then return end
  redis.call('DEL', answers[1] .. digest)
  redis.call('ZREM', answers[2], digest)
  redis.call('ZREM', answers[3], digest)
  redis.call('HDEL', answers[4], digest)
  redis.call('HINCRBY', answers[5], 'bytes', -bytes)
end

-- Forget some answers whose time is over, then those that were not used for the longest time, until at most `bytes` are
-- left. A call does bounded work: false when that was not enough.
local function make_room(answers, now, bytes)
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', answers[3], '-inf', int(now), 'LIMIT', 0, 16)) do
    drop_answer(answers, digest)
  end
  for _ = 1, 64 do
    if tonumber(redis.call('HGET', answers[5], 'bytes') or 0) <= bytes then return true end
    local oldest = redis.call('ZRANGE', answers[2], 0, 0)[1]
    if not oldest then return true end
    drop_answer(answers, oldest)
    redis.call('HINCRBY', answers[5], 'evicted', 1)
  end
  return false
end
