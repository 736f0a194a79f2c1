-- Give permits back that are not due yet; permits that are due, or gone, stay as they are.
-- KEYS[1]  ring: due times of permits, newest first, µs since epoch
-- ARGV[1]  now: µs since epoch, or -1 for the server's clock
-- ARGV[2]  due, as limit_reserve returned it
-- ARGV[3]  how many permits
-- returns  how many were given back
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
if tonumber(ARGV[2]) <= now then return 0 end
return redis.call('LREM', KEYS[1], tonumber(ARGV[3]), ARGV[2])
