-- Record a file, forget it, or only say how many bytes all files have.
-- KEYS 1 record  2 files  3 file-expiry  4 file-bytes
-- ARGV 1 id, or '' (only ask)  2 record (JSON), or '' (forget)  3 bytes  4 created  5 expires
--      6 bound on the bytes of all files, or '' (none)  7 prefix of record keys
-- Returns {1 when done, 0 when the bound is in the way, bytes of all files now}
local function bytes_of(record)
  return record and cjson.decode(record).bytes or 0
end
local total = redis.call('GET', KEYS[4])
if not total then  -- files from before they were counted
  total = 0
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    total = total + bytes_of(redis.call('GET', ARGV[7] .. id))
  end
  redis.call('SET', KEYS[4], int(total))
end
if ARGV[1] == '' then return {1, tonumber(total)} end
local before = bytes_of(redis.call('GET', KEYS[1]))
local after = total - before + (ARGV[2] ~= '' and ARGV[3] or 0)
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
elseif ARGV[6] ~= '' and after > tonumber(ARGV[6]) then
  return {0, tonumber(total)}
else
  redis.call('SET', KEYS[1], ARGV[2])
  redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
  redis.call('ZADD', KEYS[3], ARGV[5], ARGV[1])
end
redis.call('SET', KEYS[4], int(after))
return {1, after}
