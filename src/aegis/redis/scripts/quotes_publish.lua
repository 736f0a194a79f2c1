-- Store the newest values of some keys and announce them, as one step: nothing is stored without being announced.
-- KEYS[1]  book of the partition: hash, key -> "version seq at stream payload"; its field "" is the header
-- KEYS[2]  channel of the partition
-- KEYS[3]  log of the partition: a stream of the same messages, used only where ARGV[6] is above 0
-- ARGV[1]  name for this life of the data, used where there is none yet
-- ARGV[2]  stream: the producer and its epoch, without spaces
-- ARGV[3]  seq and ARGV[4] count: the frame holds ticks seq .. seq + count - 1 of its stream; there are no holes
-- ARGV[5]  at: when the first tick was published, µs since epoch on this server's clock; -1: now
-- ARGV[6]  longest log, in frames; 0: no log
-- ARGV[7]  the newest version that the producer knows: versions grow also where this server has lost its own
-- ARGV[8]  PUBLISH or SPUBLISH
-- ARGV[9]  body: all ticks of the frame, packed by the producer; not looked at here
-- ARGV[10..] key, payload, key, payload, ...: the newest tick of each key of the frame
-- returns  {life, version of the first tick, seq that the stream had reached before}; a frame that was here already
--          changes nothing and gets its own last seq
-- The header is {life, newest version, {stream -> {seq, version of its newest frame, at}}}. Tick i (from 0) has the
-- version `version + i`. Versions are the order of this server, whoever publishes, and also the time of publication in
-- µs, unless that would go back; so they never do. A stored value has the version and seq of its frame's last tick: the
-- same order, for less work. The message is "f", life, version and at, a newline, and the body.
-- Every number is an integer below 2^53, so a double holds it exactly; numbers leave through %.0f.
local FIRST, FORGET_US = 10, 7 * 86400 * 1000000
local life, stream = ARGV[1], ARGV[2]
local packed = redis.call('HGET', KEYS[1], '')
local header = packed and cmsgpack.unpack(packed) or {life, 0, {}}
life = header[1]
local seq, count, at = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local last = seq + count - 1
local known = header[3][stream]
if known and known[1] >= last then
  return {life, string.format('%.0f', known[2]), string.format('%.0f', known[1])}
end
if at < 0 then
  local time = redis.call('TIME')
  at = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local version = math.max(header[2] + 1, tonumber(ARGV[7]) + 1, at)
if not known then  -- a new stream is the moment to forget old ones
  for old, entry in pairs(header[3]) do
    if entry[3] < at - FORGET_US then header[3][old] = nil end
  end
end
header[2] = version + count - 1
header[3][stream] = {last, version, at}
local prefix = string.format('%.0f %.0f %.0f %s ', header[2], last, at, stream)
for place = FIRST + 1, #ARGV, 2 do ARGV[place] = prefix .. ARGV[place] end
redis.call('HSET', KEYS[1], '', cmsgpack.pack(header), unpack(ARGV, FIRST))
local message = string.format('f%s %.0f %.0f\n', life, version, at) .. ARGV[9]
if ARGV[6] ~= '0' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[6], string.format('%.0f-0', header[2]), 'f', message)
end
redis.call(ARGV[8], KEYS[2], message)
return {life, string.format('%.0f', version), known and string.format('%.0f', known[1]) or '0'}
