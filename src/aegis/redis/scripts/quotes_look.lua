-- How far a partition has come: its header as readers know it, or "".
-- KEYS[1]  book of the partition, see quotes_publish.lua
-- returns  a MessagePack array {life, newest version, {stream -> {seq, version of its newest frame, at}}}
local header = read_header(KEYS[1], '')
return header[LIFE] ~= '' and cmsgpack.pack({header[LIFE], header[NEWEST], header[STREAMS]}) or ''
