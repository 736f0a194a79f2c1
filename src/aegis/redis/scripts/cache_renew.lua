-- Keep a lease alive while its load runs.
-- KEYS[1] lease
-- ARGV[1] token of the lease
-- ARGV[2] lease, ms from now
-- returns 1 renewed, 0 lost
local lease = redis.call('GET', KEYS[1])
if not lease or string.sub(lease, 2) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
