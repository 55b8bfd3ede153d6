-- Keep what the controller decided and what its policy has to know at the next tick, if the writer still leads.
-- KEYS 1 policy  2 decisions  3 leader  4 leader-epoch  5 decision-counts
-- ARGV 1 own id  2 leadership epoch  3 PolicyState JSON or '' (unchanged)  4 bound of the stream  5.. pairs: `<action> <code>`, Decision JSON
-- Returns 1 when written
if redis.call('GET', KEYS[3]) ~= ARGV[1] or redis.call('GET', KEYS[4]) ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then redis.call('SET', KEYS[1], ARGV[3]) end
for i = 5, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[5], ARGV[i], 1)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'd', ARGV[i + 1])
end
return 1
