-- Delete a value only if it is still the one that the caller has seen. A load under way goes on: it is newer.
-- KEYS[1] value
-- ARGV[1] seen: the first bytes of the value, which hold its identity
-- returns 1 deleted, 0 it has changed or is gone
local value = redis.pcall('GET', KEYS[1])
if type(value) ~= 'string' or string.sub(value, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
