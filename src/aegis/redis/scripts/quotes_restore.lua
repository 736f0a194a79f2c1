-- Write a producer's book again, after the server has lost data: only what is absent or older, under its old versions.
-- KEYS[1]  book of the partition, see quotes_publish.lua
-- KEYS[2]  channel of the partition
-- ARGV[1]  PUBLISH or SPUBLISH
-- ARGV[2]  name for this life of the data, used where there is none yet
-- ARGV[3]  stream, ARGV[4] its seq, ARGV[5] version of its newest frame, ARGV[6] at: what the server had acknowledged
-- ARGV[7]  newest version that the producer knows
-- ARGV[8..] key, value as stored, key, value, ...
-- returns  {life, how many were written}; those are announced: "r", life, a newline, and a MessagePack array of
--          key, value, key, value
local function version_of(stored) return tonumber(string.match(stored, '^%d+')) end
local packed = redis.call('HGET', KEYS[1], '')
local header = packed and cmsgpack.unpack(packed) or {ARGV[2], 0, {}}
local fields = {}
for i = 8, #ARGV, 2 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  if not old or version_of(old) < version_of(ARGV[i + 1]) then
    fields[#fields + 1], fields[#fields + 2] = ARGV[i], ARGV[i + 1]
  end
end
local known = header[3][ARGV[3]]
if not known or known[1] < tonumber(ARGV[4]) then
  header[3][ARGV[3]] = {tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])}
end
header[2] = math.max(header[2], tonumber(ARGV[7]))
redis.call('HSET', KEYS[1], '', cmsgpack.pack(header), unpack(fields))
if #fields > 0 then redis.call(ARGV[1], KEYS[2], 'r' .. header[1] .. '\n' .. cmsgpack.pack(fields)) end
return {header[1], #fields / 2}
