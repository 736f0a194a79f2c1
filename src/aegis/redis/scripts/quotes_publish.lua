-- Store the newest values of some keys and announce them, as one step: nothing is stored without being announced.
-- KEYS[1]  book of the partition: hash, key -> "version seq at stream payload"; its header: see quotes_header.lua
-- KEYS[2]  channel of the partition
-- KEYS[3]  log of the partition: a stream of the same messages, used only where ARGV[6] is above 0
-- ARGV[1]  name for this life of the data, used where there is none yet
-- ARGV[2]  stream: the producer and its epoch, without spaces
-- ARGV[3]  seq and ARGV[4] count: the frame holds ticks seq .. seq + count - 1 of its stream; there are no holes
-- ARGV[5]  at: when the first tick was published, µs since epoch on this server's clock; -1: now
-- ARGV[6]  longest log, in frames; 0: no log
-- ARGV[7]  version that the producer proposes for the first tick, above all that it knows: versions grow also where this
--          server has lost its own
-- ARGV[8]  PUBLISH or SPUBLISH
-- ARGV[9]  turn: name of a field by which the producer may be known while it alone publishes here; "": none
-- ARGV[10] "", or the life that the producer knows: it has the turn, this frame was never sent before, and all its keys
--          should be here. Then there is nothing to look up; and HSETEX writes only if all of that is so.
-- ARGV[11] body: all ticks of the frame, packed by the producer; not looked at here
-- ARGV[12] length of what stands before the payload in a value
-- ARGV[13] 1: values are records in parts, to be merged into what is stored; else 0
-- ARGV[14..] key, value, key, value, ...: the newest tick of each key of the frame, as it is to be stored if ARGV[5] and
--          ARGV[7] hold; else its beginning is written anew here, which costs as much as all the rest
-- returns  {life, version of the first tick, seq that the stream had reached before, turn}: 1 if the producer has it,
--          -1 if this server has no HSETEX (Valkey 9, Redis 8), else 0. A frame that was here already changes nothing
--          and gets its own last seq
-- Tick i (from 0) has the version `version + i`. Versions are the order of this server, whoever publishes, and also the
-- time of publication in µs, unless that would go back; so they never do. A stored value has the version and seq of its
-- frame's last tick: the same order, for less work. The message is "f", life, version and at, a newline, and the body.
local FIRST, FORGET_US = 14, 7 * 86400 * 1000000
local AT_ONCE = 7001  -- Lua passes at most 8000 values to a function; odd, as FIRST - 1
local book, stream, turn = KEYS[1], ARGV[2], ARGV[9]
local seq, count, at, version = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
local last = seq + count - 1

local function number(value) return string.format('%.0f', value) end

local function entry() return string.format('%.0f %.0f %.0f %.0f', last, version, at, version + count - 1) end

local function rewrite_values(merged)
  local prefix = string.format('%.0f %.0f %.0f %s ', version + count - 1, last, at, stream)
  local payload = tonumber(ARGV[12]) + 1
  for place = FIRST + 1, #ARGV, 2 do ARGV[place] = prefix .. merged(ARGV[place - 1], string.sub(ARGV[place], payload)) end
end

local function as_it_is(_, payload) return payload end

local function with_what_is_stored(key, payload)
  local stored = redis.call('HGET', book, key)
  return stored and merge(payload_of(stored), payload) or payload
end

local function announce(life, had, has_turn)
  local message = string.format('f%s %.0f %.0f\n', life, version, at) .. ARGV[11]
  if ARGV[6] ~= '0' then
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[6], number(version + count - 1) .. '-0', 'f', message)
  end
  redis.call(ARGV[8], KEYS[2], message)
  return {life, number(version), number(had), has_turn}
end

local has_turn = 0
if ARGV[10] ~= '' and #ARGV < AT_ONCE then
  local fields = (#ARGV - FIRST + 1) / 2 + 1
  local written = redis.pcall('HSETEX', book, 'FXX', 'FIELDS', fields, turn, entry(), unpack(ARGV, FIRST))
  if written == 1 then return announce(ARGV[10], seq - 1, 1) end
  if type(written) == 'table' then turn, has_turn = '', -1 end
end

local header = read_header(book, ARGV[1])
local reached = header[STREAMS][stream]
if reached and reached[1] >= last then return {header[LIFE], number(reached[2]), number(reached[1]), 0} end
if at < 0 then at = server_now() end
version = math.max(version, header[NEWEST] + 1, at)
if ARGV[13] == '1' then
  rewrite_values(with_what_is_stored)
elseif at ~= tonumber(ARGV[5]) or version ~= tonumber(ARGV[7]) then
  rewrite_values(as_it_is)
end
if not reached then  -- a new stream is the moment to forget old ones
  for old, of_old in pairs(header[STREAMS]) do
    if of_old[3] < at - FORGET_US then header[STREAMS][old] = nil end
  end
end
end_turn(book, header)
if header[LAST] ~= stream then turn = '' end  -- who takes the turn at once would lose it at once, where two take turns
header[NEWEST], header[STREAMS][stream], header[LAST], header[TURN] =
  version + count - 1, {last, version, at}, stream, turn
local packed = cmsgpack.pack(header)
local field, value = '', packed  -- without a turn the header is written twice: one command all the same
if turn ~= '' then field, value, has_turn = turn, entry(), 1 end
redis.call('HSET', book, '', packed, field, value, unpack(ARGV, FIRST, math.min(AT_ONCE, #ARGV)))
for place = AT_ONCE + 1, #ARGV, AT_ONCE do
  redis.call('HSET', book, unpack(ARGV, place, math.min(place + AT_ONCE - 1, #ARGV)))
end
return announce(header[LIFE], reached and reached[1] or 0, has_turn)
