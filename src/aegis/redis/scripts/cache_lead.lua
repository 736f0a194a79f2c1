-- Give the caller the value, or the right to load it, or the news that somebody else is loading it.
-- KEYS[1]   value
-- KEYS[2]   lease: '0' or '1' (somebody waits) .. token while a load runs, 'E' .. error after one that failed
-- KEYS[3..] generations of the tags that the new value will carry
-- ARGV[1]   token: unique to this load; asking again with the same token is harmless
-- ARGV[2]   lease, ms
-- ARGV[3]   seen: first bytes of a value that the caller cannot use; '' = it has seen none
-- ARGV[4]   how long a new tag generation lives at least, ms
-- returns   {0 you load | 1 here is a value | 2 somebody loads | 3 it failed lately, value or error, ms left, generations..}
-- ms left is that of the value, the lease or the error. All numbers are integers below 2^53.
local reply = {0, '', 0}
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and value ~= '' and (ARGV[3] == '' or string.sub(value, 1, #ARGV[3]) ~= ARGV[3]) then
  reply = {1, value, redis.call('PTTL', KEYS[1])}
else
  local lease = redis.call('GET', KEYS[2])
  local state = lease and string.sub(lease, 1, 1)
  if not lease or string.sub(lease, 2) == ARGV[1] then
    redis.call('SET', KEYS[2], (state or '0') .. ARGV[1], 'PX', ARGV[2])
    reply[3] = tonumber(ARGV[2])
  elseif state == 'E' then
    return {3, string.sub(lease, 2), redis.call('PTTL', KEYS[2])}
  else
    if state == '0' then redis.call('SETRANGE', KEYS[2], 0, '1') end
    return {2, '', redis.call('PTTL', KEYS[2])}
  end
end
for i = 3, #KEYS do
  local generation = redis.call('GET', KEYS[i])
  if not generation and reply[1] == 0 then
    -- A generation is a name, not a count: one that was lost can never come back and revive what it covered.
    generation = ARGV[1]
    redis.call('SET', KEYS[i], generation, 'PX', ARGV[4])
  end
  reply[#reply + 1] = generation or ''
end
return reply
