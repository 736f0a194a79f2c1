-- Forget the last values of keys that nobody has published for a while, and the whole book when nobody publishes at all.
-- Those who listen are not told: what they have is as old as it is.
-- KEYS[1]  book of the partition, see quotes_publish.lua
-- ARGV[1]  keep: µs
-- ARGV[2]  now, µs since epoch; -1: the server's clock
-- returns  how many keys were forgotten
local keep, now = tonumber(ARGV[1]), tonumber(ARGV[2])
if now < 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local book, forgotten = redis.call('HGETALL', KEYS[1]), 0
for place = 1, #book, 2 do
  local at = tonumber(string.match(book[place + 1], '^%d+ %d+ (%d+) %S+ '))  -- only values look like this
  if at and at < now - keep then
    redis.call('HDEL', KEYS[1], book[place])
    forgotten = forgotten + 1
  end
end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep / 1000))
return forgotten
