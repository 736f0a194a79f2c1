-- Give back permits that are not due yet and leave the queue; who is next in line is told.
-- Permits that are due, or gone, stay as they are. Comes between limit_queue.lua and limit_save.lua.
-- KEYS[4]      bell: the channel on which the next in line hears its name
-- ARGV[own]    PUBLISH or SPUBLISH
-- ARGV[own+1]  how many lanes it leaves; then each, 0 to 2
-- then         triples: lane, due time in µs, permits
-- answers      how many permits were given back
local reply, leaving = 0, tonumber(ARGV[own + 1])
for i = own + 2, own + 1 + leaving do
  local lane = tonumber(ARGV[i]) + 1
  if mine[lane] then write_turn(lane, mine[lane], 0, 0) end
end
for i = own + 2 + leaving, #ARGV, 3 do
  if tonumber(ARGV[i + 1]) > now then reply = reply + call('LREM', ring, tonumber(ARGV[i + 2]), ARGV[i + 1]) end
end
if reply > 0 then changed, counted = true, 0 end -- to be counted anew
for lane = 1, 3 do
  local first
  for _, other in ipairs(others[lane]) do
    local sooner = first and (other.virtual < first.virtual or (other.virtual == first.virtual and other.id < first.id))
    if other.waits and (not first or sooner) then first = other end
  end
  if first then
    call(ARGV[own], KEYS[4], first.id)
    break
  end
end
