-- Store the newest values of some keys and announce them, as one step: nothing is stored without being announced.
-- KEYS[1]  book of the partition: hash, key -> "version seq at stream index payload"; its field "" is the header
-- KEYS[2]  channel of the partition
-- KEYS[3]  log of the partition: a stream of the same messages, used only where ARGV[9] is above 0
-- ARGV[1]  "f", the kind of message
-- ARGV[2]  name for this life of the data, used where there is none yet
-- ARGV[3]  stream: the producer and its epoch, without spaces
-- ARGV[4]  seq: number of the frame's first tick in its stream; numbers have no holes
-- ARGV[5]  at: when the first tick was published, µs since epoch on this server's clock; -1: now
-- ARGV[6]  the newest version that the producer knows: versions grow also where this server has lost its own
-- ARGV[7]  one letter per tick, "q"uote or "t"rade; empty: all are quotes
-- ARGV[8]  how many older ticks the producer folded into each, a JSON array; empty: none
-- ARGV[9]  longest log, in frames; 0: no log
-- ARGV[10] PUBLISH or SPUBLISH
-- ARGV[11..] key, payload, key, payload, ...
-- returns  {life, version of the first tick, seq that the stream had reached before}; a frame that was here already
--          changes nothing and gets its own last seq
-- The header is {life, newest version, {stream -> {seq, version of its newest frame, at}}}. Tick i (from 0) has the
-- version `version + i`. Versions are the order of this server, whoever publishes, and also its time in µs unless that
-- would go back; so they never do. The message is ARGV with life, at and version filled in.
-- Every number is an integer below 2^53, so a double holds it exactly; numbers leave through %.0f.
local FIRST, FORGET_US = 11, 7 * 86400 * 1000000
local packed = redis.call('HGET', KEYS[1], '')
local header = packed and cmsgpack.unpack(packed) or {ARGV[2], 0, {}}
local seq, count = tonumber(ARGV[4]), (#ARGV - FIRST + 1) / 2
local known = header[3][ARGV[3]]
if known and known[1] >= seq + count - 1 then
  return {header[1], string.format('%.0f', known[2]), string.format('%.0f', known[1])}
end
local at = tonumber(ARGV[5])
if at < 0 then
  local time = redis.call('TIME')
  at = tonumber(time[1]) * 1000000 + tonumber(time[2])
  ARGV[5] = string.format('%.0f', at)
end
local version = math.max(header[2] + 1, tonumber(ARGV[6]) + 1, at)
if not known then  -- a new stream is the moment to forget old ones
  for stream, entry in pairs(header[3]) do
    if entry[3] < at - FORGET_US then header[3][stream] = nil end
  end
end
header[2] = version + count - 1
header[3][ARGV[3]] = {seq + count - 1, version, at}
ARGV[2], ARGV[6] = header[1], string.format('%.0f', version)
local message = cmsgpack.pack(ARGV)
local head = ARGV[6] .. ' ' .. ARGV[4] .. ' ' .. ARGV[5] .. ' ' .. ARGV[3] .. ' '
for i = 0, count - 1 do
  local place = FIRST + 1 + 2 * i
  ARGV[place] = head .. i .. ' ' .. ARGV[place]
end
redis.call('HSET', KEYS[1], '', cmsgpack.pack(header), unpack(ARGV, FIRST))
if ARGV[9] ~= '0' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[9], string.format('%.0f-0', header[2]), 'f', message)
end
redis.call(ARGV[10], KEYS[2], message)
return {header[1], ARGV[6], known and string.format('%.0f', known[1]) or '0'}
