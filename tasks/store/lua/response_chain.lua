-- A response and those before it in its conversation, newest first.
-- KEYS 1 record
-- ARGV 1 id of its job  2 how many at most  3 prefix of records
-- Returns per response: {id, StoredResponse JSON, state, model, created, finished, result, error} with '' for what is not
-- there; a record that is gone has only its id.
local found, id = {}, ARGV[1]
while id and id ~= '' and #found < tonumber(ARGV[2]) do
  local fields = redis.call('HMGET', ARGV[3] .. id, 'response', 'state', 'model', 'created', 'finished', 'result',
    'error', 'previous')
  local row = {id}
  if fields[1] then
    for i = 1, 7 do row[i + 1] = fields[i] or '' end
  end
  found[#found + 1] = row
  id = fields[8]
end
return found
