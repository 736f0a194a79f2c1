-- Records in parts: how a value is merged into what is stored. In front of the scripts that need it.
-- A value is "version seq at stream payload". The payload of a record is, for every field, \30, the name as JSON, \31,
-- the value as JSON; any other payload is JSON, in which these two characters cannot be. See broadcast/parts.py.
local function payload_of(value) return string.match(value, '^%d+ %d+ %d+ %S+ (.*)$') end

local function is_record(payload) return string.byte(payload) == 30 end

local function merge(older, newer)
  if not (is_record(older) and is_record(newer)) then return newer end
  local fields, names = {}, {}
  for _, record in ipairs({older, newer}) do
    for name, value in string.gmatch(record, '\30([^\31]*)\31([^\30]*)') do
      if not fields[name] then names[#names + 1] = name end
      fields[name] = value
    end
  end
  for place, name in ipairs(names) do names[place] = '\30' .. name .. '\31' .. fields[name] end
  return #names > 0 and table.concat(names) or '\30'
end
