-- What the limit scripts share, sent in front of each: the clock, the ring, and the rule that makes it exact.
-- KEYS[1]  ring: a list of due times, one per permit, newest first, never increasing towards the tail
-- KEYS[2]  state: a hash
--            last    the latest moment at which a script wrote
--            skew    what is added to the server's clock, so that it never steps back
--            held    nobody is due before this
--            server  which server wrote last
--            used    how many permits lay in the first rate's window: where the next search begins, no more than that
--            widest  the widest window of anybody who used this ring: how long permits are remembered
--            lives   until when these keys live at least
--            crowd   until when anybody may be waiting: after that nobody has to look at the turns
--            passed1, passed2   permits that went to more urgent lanes while lane 1, 2 was waiting
-- KEYS[3]  turns: who is waiting (limit_queue.lua)
-- ARGV[1]  now: µs since epoch, or -1 for the server's clock
-- ARGV[2]  this server's name, which changes when it is restarted or replaced; empty when it may not be asked
-- ARGV[3]  1 when the caller has lately talked to another server
-- ARGV[4]  pause in µs, when the ring may have lost permits: it was written by another server, or the caller has seen one
-- ARGV[5]  and ARGV[6]: the pace, that is limit and window (µs) of the rate by which permits are spread after a hold
-- ARGV[7]  number of rates; then a limit and a window (µs) for each; the script's own arguments begin at `own`
--
-- The rule: a permit is due one window after the permit `limit` places before it, for every rate, and not before the
-- newest. So no half-open window holds more than its limit. It stays true when permits that are not due yet are taken
-- out, because trimming goes by age alone: what could still share a window with a permit to come is always there.
-- Every number is an integer below 2^53, so a double holds it exactly; numbers leave through %.0f.
local ring, state = KEYS[1], KEYS[2]
local call, floor, ceil, max, min = redis.call, math.floor, math.ceil, math.max, math.min

local function text(number)
  return string.format('%.0f', number)
end

local known = call('HMGET', state, 'last', 'skew', 'held', 'server', 'used', 'widest', 'lives', 'crowd')
local last, skew, held = tonumber(known[1] or 0), tonumber(known[2] or 0), tonumber(known[3] or 0)
local used, widest, crowd = tonumber(known[5] or 0), tonumber(known[6] or 0), tonumber(known[8] or 0)

local rare = skew + held + widest -- as they are stored
local limits, windows = {}, {}
for i = 1, tonumber(ARGV[7]) do
  limits[i], windows[i] = tonumber(ARGV[6 + 2 * i]), tonumber(ARGV[7 + 2 * i])
  widest = max(widest, windows[i])
end
local own = 8 + 2 * #limits

-- A clock that steps back goes on from where it was: what it lost makes waits longer, never shorter.
local now = tonumber(ARGV[1])
if now < 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
now = now + skew
if now < last then
  skew, now = skew + last - now, last
end

local server = ARGV[2]
local disturbed = false
if server ~= '' and known[4] ~= server and (known[4] or ARGV[3] == '1') then
  disturbed = true
  held = max(held, now + tonumber(ARGV[4]))
end

local newest = tonumber(call('LINDEX', ring, 0) or 0)
local pace_window = tonumber(ARGV[6])
local step = ceil(pace_window / tonumber(ARGV[5]))

-- When the `count`-th permit from now is due, if nobody else takes any.
local function due_of(count)
  local base = max(now, held, newest)
  local due = base
  for i = 1, #limits do
    local limit, window = limits[i], windows[i]
    local rounds = floor((count - 1) / limit)
    local older = call('LINDEX', ring, limit - count + rounds * limit)
    due = max(due, (older and max(base, older + window) or base) + rounds * window)
  end
  if held > 0 and due < held + pace_window then -- the first window after a hold: spread, not burst
    due = max(due, min(held + pace_window, max(newest + count * step, held + (count - 1) * step)))
  end
  return due
end

-- How many permits are due by `moment`, `most` at most.
local function due_by(moment, most)
  if most < 1 then return 0 end
  if due_of(most) <= moment then return most end
  if most == 1 or due_of(1) > moment then return 0 end
  local low, high = 1, most
  while high - low > 1 do
    local middle = floor((low + high) / 2)
    if due_of(middle) <= moment then low = middle else high = middle end
  end
  return low
end

local function push(due, count)
  local entry, entries = text(due), {}
  for i = 1, min(count, 100) do entries[i] = entry end
  for _ = 1, floor(count / 100) do call('LPUSH', ring, unpack(entries, 1, 100)) end
  if count % 100 > 0 then call('LPUSH', ring, unpack(entries, 1, count % 100)) end
  newest, used = due, used + count
end

-- Permits in the first rate's window. Entries are sorted, and few pass its edge between two calls.
local function count_used()
  local edge = now - windows[1]
  local function inside(place)
    if place < 1 then return true end
    local entry = call('LINDEX', ring, place - 1)
    return entry and tonumber(entry) > edge
  end
  local low, high, stride = used, used + 1, 1
  if inside(used) then
    while inside(high) do low, high, stride = high, high + 2 * stride, 2 * stride end
  else
    low, high = used - 1, used
    while not inside(low) do low, high, stride = low - 2 * stride, low, 2 * stride end
  end
  low = max(low, 0)
  while high - low > 1 do
    local middle = floor((low + high) / 2)
    if inside(middle) then low = middle else high = middle end
  end
  used = low
  return used
end

-- Drop permits that have left the widest window: a few more at a time than are pushed, so that the ring shrinks after a
-- burst, no call pays for all of it, and most look at one entry only.
local function trim(pushed)
  local drop = pushed + 8
  local entry = call('LINDEX', ring, -drop)
  if entry and tonumber(entry) <= now - widest then call('LTRIM', ring, 0, -drop - 1) end
end

-- Write the state, and let it live until nothing in it can matter any more: a little longer, so that this need not be
-- said with every permit.
local function save()
  local matters = max(newest, held, now) + widest
  call('HSET', state, 'last', text(now), 'used', used)
  if rare ~= skew + held + widest or known[4] ~= server then -- none of them ever shrinks
    call('HSET', state, 'skew', text(skew), 'held', text(held), 'widest', text(widest), 'server', server)
  end
  if matters > tonumber(known[7] or 0) then
    local lives = matters + 1000000 + min(widest, 60000000)
    local life = text(ceil((lives - now) / 1000))
    call('HSET', state, 'lives', text(lives))
    call('PEXPIRE', state, life)
    call('PEXPIRE', ring, life)
  end
end
