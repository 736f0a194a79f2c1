-- The header of a partition: how far it has come. In front of the scripts that need it.
-- The field "" of the book is {life, newest version, {stream -> {seq, version of its newest frame, at}}, last stream,
-- turn}. `turn` names the field in which the last stream keeps its own entry up to date while nobody else publishes:
-- "seq version at newest-version", newer than what "" says of it. With "" nobody has the turn.
-- Every number is an integer below 2^53, so a double holds it exactly; numbers leave through %.0f.
local LIFE, NEWEST, STREAMS, LAST, TURN = 1, 2, 3, 4, 5

local function read_header(book, life)
  local packed = redis.call('HGET', book, '')
  if not packed then return {life, 0, {}, '', ''} end
  local header = cmsgpack.unpack(packed)
  local entry = header[TURN] ~= '' and redis.call('HGET', book, header[TURN])
  if entry then
    local seq, version, at, newest = string.match(entry, '(%d+) (%d+) (%d+) (%d+)')
    header[STREAMS][header[LAST]] = {tonumber(seq), tonumber(version), tonumber(at)}
    header[NEWEST] = tonumber(newest)
  end
  return header
end

local function end_turn(book, header)
  if header[TURN] ~= '' then redis.call('HDEL', book, header[TURN]) end
  header[TURN] = ''
end

local function server_now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end
