-- Write a producer's book again, after the server may have lost data: only what is absent or older, under its old
-- versions. Records in parts are merged with what is there: fields that only one of both has stay.
-- KEYS[1]  book of the partition, see quotes_publish.lua
-- KEYS[2]  channel of the partition
-- ARGV[1]  PUBLISH or SPUBLISH
-- ARGV[2]  name for this life of the data, used where there is none yet
-- ARGV[3]  stream, ARGV[4] its seq, ARGV[5] version of its newest frame, ARGV[6] at: what the server had acknowledged
-- ARGV[7]  newest version that the producer knows
-- ARGV[8..] key, value as stored, key, value, ...
-- returns  {life, how many were written}; those are announced: "r", life, a newline, and a MessagePack array of
--          key, value, key, value
local FIRST = 8
local function version_of(stored) return tonumber(string.match(stored, '^%d+')) end
local header = read_header(KEYS[1], ARGV[2])
local keys, fields = {}, {}
for place = FIRST, #ARGV, 2 do keys[#keys + 1] = ARGV[place] end
local stored = redis.call('HMGET', KEYS[1], unpack(keys))
for number, key in ipairs(keys) do
  local mine = ARGV[FIRST + 2 * number - 1]
  local merged = mine
  if stored[number] then
    local older, newer = stored[number], mine
    if version_of(newer) <= version_of(older) then older, newer = newer, older end
    local payload = payload_of(newer)
    merged = string.sub(newer, 1, #newer - #payload) .. merge(payload_of(older), payload)
  end
  if merged ~= stored[number] then fields[#fields + 1], fields[#fields + 2] = key, merged end
end
local known, seq = header[STREAMS][ARGV[3]], tonumber(ARGV[4])
if #fields == 0 and known and known[1] >= seq then return {header[LIFE], 0} end
end_turn(KEYS[1], header)
if not known or known[1] < seq then header[STREAMS][ARGV[3]] = {seq, tonumber(ARGV[5]), tonumber(ARGV[6])} end
header[NEWEST] = math.max(header[NEWEST], tonumber(ARGV[7]))
redis.call('HSET', KEYS[1], '', cmsgpack.pack(header), unpack(fields))
if #fields > 0 then redis.call(ARGV[1], KEYS[2], 'r' .. header[LIFE] .. '\n' .. cmsgpack.pack(fields)) end
return {header[LIFE], #fields / 2}
