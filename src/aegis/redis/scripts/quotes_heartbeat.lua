-- Say on a partition's channel how far each of its streams has come, and answer the same.
-- Whoever listens compares with what has arrived: so the loss of the last message is seen, on a quiet key, too, and a
-- connection that delivers nothing gives itself away.
-- KEYS[1]  book of the partition; its field "" is the header, see quotes_publish.lua
-- KEYS[2]  channel of the partition
-- ARGV[1]  PUBLISH or SPUBLISH
-- ARGV[2]  now, µs since epoch; -1: the server's clock
-- returns  {now, header or ""}; the message is "h" and the header
local now, header = ARGV[2], redis.call('HGET', KEYS[1], '') or ''
if tonumber(now) < 0 then
  local time = redis.call('TIME')
  now = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
end
redis.call(ARGV[1], KEYS[2], 'h' .. header)
return {now, header}
