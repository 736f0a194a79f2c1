-- What the limit scripts share, sent in front of each: the clock, the ring, and the rule that makes it exact.
-- KEYS[1]  ring: a list of due times, one per permit, newest first, never increasing towards the tail
-- KEYS[2]  state: one record, see below
-- KEYS[3]  turns: who is waiting (limit_queue.lua)
-- ARGV[1]  now: µs since epoch, or -1 for the server's clock
-- ARGV[2]  this server's name, which changes when it is restarted or replaced; empty when it may not be asked
-- ARGV[3]  1 when the caller has lately talked to another server
-- ARGV[4]  me: the process that waits; empty when the caller does not
-- ARGV[5]  pause in µs, when the ring may have lost permits: it was written by another server, or the caller has seen one
-- ARGV[6]  and ARGV[7]: the pace, that is limit and window (µs) of the rate by which permits are spread after a hold
-- ARGV[8]  number of rates; then a limit and a window (µs) for each; the script's own arguments begin at `own`
--
-- The rule: a permit is due one window after the permit `limit` places before it, for every rate, and not before the
-- newest. So no half-open window holds more than its limit. It stays true when permits that are not due yet are taken
-- out, because trimming goes by age alone: what could still share a window with a permit to come is always there.
-- Every number is an integer below 2^53, so a double holds it exactly, and so does what `redis.call` writes for it.
--
-- These scripts are written for few steps, because `allow` is asked often: a closure costs as much as a command.
local ring, state, me = KEYS[1], KEYS[2], ARGV[4]
local call, floor, ceil, max, min = redis.call, math.floor, math.ceil, math.max, math.min

-- The layout of all three keys. Another number was written by another aegis: nothing is read then, and nothing written.
local LAYOUT = 1
-- The state, one packed record: a hash of so many fields costs three times as much to read.
-- last      the latest moment at which a script wrote
-- skew      what is added to the server's clock, so that it never steps back
-- held      nobody is due before this
-- newest    the first entry of the ring
-- used      permits in the latest `counted` µs, those to come included; `oldest` is when the first of them was due
-- widest    the widest window of anybody who used this ring: how long permits are remembered
-- lives     until when these keys live at least
-- crowd     until when anybody may be waiting: after that nobody has to look at the turns
-- passed1, passed2   permits that went to more urgent lanes while lane 1, 2 was waiting
-- author    which server wrote last
local STATE = '<Bdddddddddddds'
local _, last, skew, held, newest, used, oldest, counted, widest, lives, crowd, passed1, passed2, author
local record = call('GET', state)
if not record then
  last, skew, held, newest, used, oldest, counted, widest, lives, crowd, passed1, passed2 =
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
elseif record:byte() ~= LAYOUT then
  return redis.error_reply('LAYOUT ' .. record:byte() .. ' instead of ' .. LAYOUT)
else
  _, last, skew, held, newest, used, oldest, counted, widest, lives, crowd, passed1, passed2, author =
    struct.unpack(STATE, record)
end

local limits, windows = {}, {}
for i = 1, tonumber(ARGV[8]) do
  limits[i], windows[i] = tonumber(ARGV[7 + 2 * i]), tonumber(ARGV[8 + 2 * i])
  widest = max(widest, windows[i])
end
local own = 9 + 2 * #limits

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

local server, changed = ARGV[2], false
if server == '' then
  server = author or ''
elseif author ~= server and (author or ARGV[3] == '1') then
  changed = true
  held = max(held, now + tonumber(ARGV[5]))
end

-- Permits in the first rate's window, from what was known: entries are sorted, and few pass its edge between two calls.
-- An entry that should be there and is not (somebody deleted the ring) is taken for as young as the newest.
local edge = now - windows[1]
if counted ~= windows[1] or (used > 0 and oldest <= edge) then
  local low, high, stride = used - 1, used, 1
  if counted ~= windows[1] then
    counted, low, high = windows[1], 0, call('LLEN', ring) + 1
    newest = tonumber(call('LINDEX', ring, 0) or 0)
  end
  while low > 0 and tonumber(call('LINDEX', ring, low - 1) or newest) <= edge do
    low, high, stride = low - stride, low, 2 * stride
  end
  low = max(low, 0)
  while high - low > 1 do
    local middle = floor((low + high) / 2)
    if tonumber(call('LINDEX', ring, middle - 1) or newest) > edge then low = middle else high = middle end
  end
  used, oldest = low, low > 0 and tonumber(call('LINDEX', ring, low - 1) or newest) or 0
end

-- When the `count`-th permit from now is due, if nobody else takes any.
local function due_of(count)
  local base = max(now, held, newest)
  local due = base
  for i = 1, #limits do
    local limit, window = limits[i], windows[i]
    if i > 1 or used + count > limit then -- else that permit has left the window
      local rounds = floor((count - 1) / limit)
      local place = limit - count + rounds * limit
      local older = call('LINDEX', ring, place) or (place < used and newest)
      due = max(due, (older and max(base, older + window) or base) + rounds * window)
    end
  end
  if held > 0 and due < held + tonumber(ARGV[7]) then -- the first window after a hold: spread, not burst
    local pace_window = tonumber(ARGV[7])
    local step = ceil(pace_window / tonumber(ARGV[6]))
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

-- Add permits. Now and then drop twice as many that have left the widest window: so the ring shrinks after a burst, and
-- no call pays for all of it.
local born = false
local function push(due, count)
  local length
  if count == 1 then
    length = call('LPUSH', ring, due)
  else
    local entries = {}
    for i = 1, min(count, 100) do entries[i] = due end
    for _ = 1, floor(count / 100) do length = call('LPUSH', ring, unpack(entries, 1, 100)) end
    if count % 100 > 0 then length = call('LPUSH', ring, unpack(entries, 1, count % 100)) end
  end
  if used == 0 then oldest = due end
  newest, used = due, used + count
  changed, born = true, born or length == count
  if length % 8 < count then
    local drop = 8 + 2 * count
    local entry = call('LINDEX', ring, -drop)
    if entry and tonumber(entry) <= now - widest then call('LTRIM', ring, 0, -drop - 1) end
  end
end
