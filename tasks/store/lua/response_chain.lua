-- A response and those before it in its conversation, newest first. What they echo is left out: it does not go on.
-- KEYS 1 record
-- ARGV 1 id of its job  2 how many at most  3 prefix of records  4.. fields to read
-- Returns per response: its id, then the fields; of a record that is gone nothing but the id.
local found, id = {}, ARGV[1]
while id and id ~= '' and #found < tonumber(ARGV[2]) do
  local fields = redis.call('HMGET', ARGV[3] .. id, unpack(ARGV, 4))
  found[#found + 1] = fields[1] and {id, unpack(fields)} or {id}
  id = redis.call('HGET', ARGV[3] .. id, 'previous')
end
return found
