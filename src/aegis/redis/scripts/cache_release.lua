-- Give up a lease: the load failed or was abandoned. With an error, keep the next ones quiet for a while.
-- KEYS[1] lease
-- KEYS[2] channel of those who wait for the key
-- ARGV[1] token of the lease
-- ARGV[2] error to leave for others, '' for none
-- ARGV[3] how long to leave it, ms
-- ARGV[4] PUBLISH or SPUBLISH
-- ARGV[5] what to announce
-- returns 1 released, 0 it was not ours any more
local lease = redis.call('GET', KEYS[1])
if not lease or string.sub(lease, 2) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], 'E' .. ARGV[2], 'PX', ARGV[3])
end
if string.sub(lease, 1, 1) == '1' then redis.call(ARGV[4], KEYS[2], ARGV[5]) end
return 1
