-- Store what a load brought, if its lease still stands, and tell those who wait for it.
-- KEYS[1] value
-- KEYS[2] lease
-- KEYS[3] channel of those who wait for the key
-- ARGV[1] token of the lease
-- ARGV[2] the value in its envelope
-- ARGV[3] time to live, ms
-- ARGV[4] PUBLISH or SPUBLISH
-- ARGV[5] what to announce
-- returns 1 stored, 0 refused: the lease was lost, or the key was set or deleted meanwhile
local lease = redis.call('GET', KEYS[2])
if not lease or string.sub(lease, 2) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
if string.sub(lease, 1, 1) == '1' then redis.call(ARGV[4], KEYS[3], ARGV[5]) end
return 1
