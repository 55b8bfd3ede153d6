-- End the leases of a worker that is known to be dead, so that the next sweep returns its jobs.
-- KEYS 1 running
-- ARGV 1 worker  2 prefix of job keys
-- Returns how many
local count = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if redis.call('HGET', ARGV[2] .. id, 'worker') == ARGV[1] then
    count = count + redis.call('ZADD', KEYS[1], 'XX', 'CH', 0, id)
  end
end
return count
