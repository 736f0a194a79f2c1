-- Say on a partition's channel how far each of its streams has come, and answer the same.
-- Whoever listens compares with what has arrived: so the loss of the last message is seen, on a quiet key, too, and a
-- connection that delivers nothing gives itself away.
-- KEYS[1]  book of the partition, see quotes_publish.lua
-- KEYS[2]  channel of the partition
-- ARGV[1]  PUBLISH or SPUBLISH
-- ARGV[2]  now, µs since epoch; -1: the server's clock
-- returns  {now, header as in quotes_look.lua, or ""}; the message is "h" and the header
local header, packed = read_header(KEYS[1], ''), ''
if header[LIFE] ~= '' then packed = cmsgpack.pack({header[LIFE], header[NEWEST], header[STREAMS]}) end
local now = tonumber(ARGV[2])
if now < 0 then now = server_now() end
redis.call(ARGV[1], KEYS[2], 'h' .. packed)
return {string.format('%.0f', now), packed}
