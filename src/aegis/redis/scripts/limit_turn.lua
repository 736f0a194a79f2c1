-- `wait`: one process says what its callers wait for, takes its turn, and is told when to come back for the rest.
-- Comes between limit_queue.lua and limit_save.lua.
-- ARGV[own]    how long a starving lane may look ahead, µs
-- ARGV[own+1..]  for each lane with demand, most urgent first: lane 0 to 2; horizon in µs; demand in permits; number of
--              runs; and the runs, which describe the head of its queue: callers, cost of each, patience in µs (-1: any).
--              Lanes that are not named have no demand: there this process is not waiting any more.
-- answers  {now, skew, µs until the hold ends,
--           slots: lane, µs until due, permits; ...
--           lanes: lane, permits still waited for, µs until it shall come back, µs until the first and the last of them
--                  are due if nobody else takes any; ...
--           refused: lane, number of the run (from 1), µs until it could be met; ...}
--
-- Fairness is start-time fair queueing over processes: in a lane, the next permit is for who has had fewest. Who comes
-- anew is credited with one window at most. A lane may only take what is due within its horizon, and of that only what
-- falls to it when everybody who waits in the lane gets his share (`mine_of`); the rest is for the others, who have been
-- told when to come. More urgent lanes come first; but a lane that STARVED permits have passed by has the next one.
local STARVED = 20
local SOON = 5000 -- nobody is told to come back sooner than this, µs
local farthest, credit = tonumber(ARGV[own]), tonumber(ARGV[6])
local passed = { 0, passed1, passed2 }

-- What this process asks for, by lane; what cannot be met in time is refused before anything is written.
local asks, refused, position, at = {}, {}, 0, own + 1
while ARGV[at] do
  local lane = tonumber(ARGV[at]) + 1
  local ask = { horizon = tonumber(ARGV[at + 1]), demand = tonumber(ARGV[at + 2]), runs = {} }
  local runs, described = tonumber(ARGV[at + 3]), 0
  at = at + 4
  for number = 1, runs do
    local callers, cost, patience = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local wait = patience < 0 and -1 or due_of(position + callers * cost) - now
    if wait > patience then
      refused[#refused + 1] = lane - 1
      refused[#refused + 1] = number
      refused[#refused + 1] = wait
      ask.demand = ask.demand - callers * cost
    else
      table.insert(ask.runs, { callers, cost })
      position, described = position + callers * cost, described + callers * cost
    end
    at = at + 3
  end
  position = position + ask.demand - described
  asks[lane] = ask
end

-- How many permits others of the lane get before a process of this virtual time gets its `count`-th from now.
local function before(lane, virtual, count)
  local sum, mark = 0, virtual + count - 1
  for _, other in ipairs(others[lane]) do
    if other.waits then
      local share = mark - other.virtual + (other.id < me and 1 or 0)
      sum = sum + max(0, min(other.demand, share))
    end
  end
  return sum
end

-- The share of this process in `available` permits, `demand` at most.
local function mine_of(lane, virtual, available, demand)
  local low, high = 0, max(0, min(demand, available)) + 1
  while high - low > 1 do
    local middle = floor((low + high) / 2)
    if before(lane, virtual, middle) + middle <= available then low = middle else high = middle end
  end
  return low
end

-- The virtual time of this process: what it has had, but no more than `credit` less than who has had most. (Not less than
-- those who wait: then each newcomer would come before the one before.) Who is further behind and gone is forgotten.
local function virtual_of(lane)
  local most
  for _, other in ipairs(others[lane]) do most = max(most or other.virtual, other.virtual) end
  if not most then return mine[lane] or 0 end
  for _, other in ipairs(others[lane]) do
    if not other.waits and other.virtual <= most - credit then call('HDEL', turns, (lane - 1) .. other.id) end
  end
  return max(mine[lane] or most - credit, most - credit)
end

local wanted = {}
for lane = 1, 3 do wanted[lane] = demands[lane] + (asks[lane] and asks[lane].demand or 0) end
local function starving(lane)
  return passed[lane] >= STARVED and wanted[lane] > 0
end

local slots, lanes = {}, {}
for lane = 1, 3 do
  local ask = asks[lane]
  if ask and ask.demand > 0 then
    local starved = starving(lane)
    local horizon, ahead, demand = ask.horizon, 0, ask.demand
    if starved then
      horizon, demand = max(horizon, farthest), ask.runs[1] and ask.runs[1][2] or 1
    else
      for other = 1, lane - 1 do ahead = ahead + wanted[other] end
      for other = lane + 1, 3 do ahead = ahead + (starving(other) and 1 or 0) end
    end
    local virtual = virtual_of(lane)
    local available = due_by(now + horizon, ahead + wanted[lane]) - ahead
    local share, got, run, number = mine_of(lane, virtual, available, demand), 0, 1, 1
    while ask.runs[run] and got + ask.runs[run][2] <= share do
      local cost = ask.runs[run][2]
      local due = due_of(cost)
      if due > now + horizon then break end -- costs that do not fit into a window leave gaps
      push(due, cost)
      got, number = got + cost, number + 1
      if number > ask.runs[run][1] then run, number = run + 1, 1 end
      local top = #slots
      if slots[top] and slots[top - 2] == lane - 1 and slots[top - 1] == due - now then
        slots[top] = slots[top] + cost
      else
        slots[top + 1], slots[top + 2], slots[top + 3] = lane - 1, due - now, cost
      end
    end
    local left = ask.demand - got
    virtual, wanted[lane] = virtual + got, wanted[lane] - got
    if got > 0 then
      passed[lane] = 0
      for other = lane + 1, 3 do
        if wanted[other] > 0 then passed[other] = passed[other] + got end
      end
    end
    local back = 0
    if left > 0 then
      local cost = ask.runs[run] and ask.runs[run][2] or 1
      local place = ahead + before(lane, virtual, cost) + cost
      if starved then
        for other = 1, lane - 1 do place = place + wanted[other] end
      end
      back = due_of(place) - ask.horizon
      local urgent = 0
      for other = 1, lane - 1 do urgent = urgent + wanted[other] end
      if urgent > 0 then -- it may starve; or those before it are dead, which shows when they do not come
        back = min(back, due_of(max(0, STARVED - passed[lane]) + cost) - farthest, now + tonumber(ARGV[7]))
      end
      back = max(SOON, back - now)
      for _, number in ipairs({ lane - 1, left, back, due_of(1) - now, due_of(left) - now }) do
        lanes[#lanes + 1] = number
      end
    end
    if back > 0 then crowd = max(crowd, now + back + GRACE) end
    changed = true
    write_turn(lane, virtual, left, left > 0 and now + back or 0)
  elseif mine[lane] then
    write_turn(lane, mine[lane], 0, 0)
  end
end

passed1, passed2 = passed[2], passed[3]
local reply = { now, skew, max(0, held - now), slots, lanes, refused }
