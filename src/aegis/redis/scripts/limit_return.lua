-- Give back permits that are not due yet and leave the queue; who is next in line is told.
-- Permits that are due, or gone, stay as they are. Comes after limit_rule.lua and limit_queue.lua.
-- KEYS[4]      bell: the channel on which the next in line hears its name
-- ARGV[own]    me: the process
-- ARGV[own+1]  PUBLISH or SPUBLISH
-- ARGV[own+2]  how many lanes it leaves; then each, 0 to 2
-- then         triples: lane, due time in µs, permits
-- returns      how many permits were given back
local me, leaving = ARGV[own], tonumber(ARGV[own + 2])
local others, mine = read_turns(me)
for i = own + 3, own + 2 + leaving do
  local lane = tonumber(ARGV[i]) + 1
  if mine[lane] then write_turn(lane, me, mine[lane], 0, now) end
end
local back = 0
for i = own + 3 + leaving, #ARGV, 3 do
  if tonumber(ARGV[i + 1]) > now then back = back + call('LREM', ring, tonumber(ARGV[i + 2]), ARGV[i + 1]) end
end
if back > 0 then
  used = max(0, used - back)
  newest = tonumber(call('LINDEX', ring, 0) or 0)
  save()
end
for lane = 1, 3 do
  local first
  for _, other in ipairs(others[lane]) do
    local sooner = first and (other.virtual < first.virtual or (other.virtual == first.virtual and other.id < first.id))
    if other.waits and (not first or sooner) then first = other end
  end
  if first then
    call(ARGV[own + 1], KEYS[4], first.id)
    break
  end
end
return back
