-- Set a value; a load that is under way loses its lease and can no longer overwrite it.
-- KEYS[1] value
-- KEYS[2] lease
-- ARGV[1] the value in its envelope
-- ARGV[2] time to live, ms
-- ARGV[3] channel of announcements
-- ARGV[4] what to announce
-- returns 1
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if redis.call('DEL', KEYS[2]) == 1 then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 1
