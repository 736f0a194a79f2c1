-- Delete a value, and with it the right of any load under way to store an older one.
-- KEYS[1] value
-- KEYS[2] lease
-- ARGV[1] channel of announcements
-- ARGV[2] what to announce
-- returns 1 there was a value, 0 there was none
local existed = redis.call('DEL', KEYS[1])
if redis.call('DEL', KEYS[2]) == 1 then redis.call('PUBLISH', ARGV[1], ARGV[2]) end
return existed
