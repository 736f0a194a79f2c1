-- Who is waiting, shared by the limit scripts that must know; comes after limit_rule.lua.
-- KEYS[3]  turns: a hash. Field: the lane's digit, then the waiting process. Value: "virtual demand promised"
--            virtual   permits this process has had in this lane: who has had fewest is next
--            demand    permits it is waiting for; 0: it is not waiting, but what it has had is remembered
--            promised  when it was told to come back, µs; one that is late by more than the grace has lost its place
local turns = KEYS[3]
local GRACE = 50000

-- Returns others by lane (1 to 3): lists of {id, virtual, demand, waits}; and mine: virtual by lane.
local function read_turns(me)
  local others, mine = { {}, {}, {} }, {}
  local all = call('HGETALL', turns)
  for i = 1, #all, 2 do
    local lane, id = tonumber(all[i]:sub(1, 1)) + 1, all[i]:sub(2)
    local virtual, demand, promised = all[i + 1]:match('^(%-?%d+) (%d+) (%d+)$')
    if id == me then
      mine[lane] = tonumber(virtual)
    else
      local waits = demand ~= '0' and now <= tonumber(promised) + GRACE
      table.insert(others[lane], { id = id, virtual = tonumber(virtual), demand = tonumber(demand), waits = waits })
    end
  end
  return others, mine
end

local function write_turn(lane, me, virtual, demand, promised)
  call('HSET', turns, (lane - 1) .. me, text(virtual) .. ' ' .. text(demand) .. ' ' .. text(promised))
end

-- Permits that others in this lane wait for.
local function demand_of(group)
  local sum = 0
  for _, other in ipairs(group) do
    if other.waits then sum = sum + other.demand end
  end
  return sum
end
