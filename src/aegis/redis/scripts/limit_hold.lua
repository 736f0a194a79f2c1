-- Let nobody be due before `now + pause`; a hold only ever extends forward.
-- KEYS[1]  hold: µs since epoch
-- ARGV[1]  now: µs since epoch, or -1 for the server's clock
-- ARGV[2]  pause, µs
-- returns  µs from now until the hold ends
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local held = tonumber(redis.call('GET', KEYS[1]) or 0)
local wanted = now + tonumber(ARGV[2])
if wanted > held then
  held = wanted
  redis.call('SET', KEYS[1], string.format('%.0f', held), 'PX', string.format('%.0f', math.ceil((held - now) / 1000) + 1000))
end
return string.format('%.0f', math.max(0, held - now))
