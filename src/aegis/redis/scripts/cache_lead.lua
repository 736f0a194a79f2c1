-- Give the caller the value, or the right to load it, or the news that somebody else is loading it.
-- KEYS[1] value
-- KEYS[2] lease: '0' or '1' (somebody waits) .. token while a load runs, 'E' .. error after one that failed
-- ARGV[1] token: unique to this load
-- ARGV[2] lease, ms
-- ARGV[3] seen: first bytes of a value that the caller cannot use; '' = it has seen none
-- returns {0 you load | 1 here is a value | 2 somebody loads | 3 it failed lately, value or error, ms left}
-- ms left is that of the value, the lease or the error. All numbers are integers below 2^53.
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and value ~= '' and (ARGV[3] == '' or string.sub(value, 1, #ARGV[3]) ~= ARGV[3]) then
  return {1, value, redis.call('PTTL', KEYS[1])}
end
local lease = redis.call('GET', KEYS[2])
if not lease then
  redis.call('SET', KEYS[2], '0' .. ARGV[1], 'PX', ARGV[2])
  return {0, '', tonumber(ARGV[2])}
end
local state = string.sub(lease, 1, 1)
if state == 'E' then return {3, string.sub(lease, 2), redis.call('PTTL', KEYS[2])} end
if state == '0' then redis.call('SETRANGE', KEYS[2], 0, '1') end
return {2, '', redis.call('PTTL', KEYS[2])}
