-- Who is waiting, as far as the script must know; comes after limit_rule.lua.
-- KEYS[3]  turns: a hash. Field: the lane's digit, then the waiting process. Value: "virtual demand promised"
--            virtual   permits this process has had in this lane: who has had fewest is next
--            demand    permits it is waiting for; 0: it is not waiting, but what it has had is remembered
--            promised  when it was told to come back, µs; one that is late by more than the grace has lost its place
local turns, GRACE = KEYS[3], 50000
-- By lane, 1 to 3: lists of {id, virtual, demand, waits}; how many permits they wait for; what this process has had.
-- Not made when nobody waits and the caller does not either.
local others, demands, mine, write_turn
if me ~= '' or crowd > now then
  others, demands, mine = { {}, {}, {} }, { 0, 0, 0 }, {}
  local all = call('HGETALL', turns)
  for i = 1, #all, 2 do
    local lane, id = tonumber(all[i]:sub(1, 1)) + 1, all[i]:sub(2)
    local virtual, demand, promised = all[i + 1]:match('^(%-?%d+) (%d+) (%d+)$')
    if id == me then
      mine[lane] = tonumber(virtual)
    else
      local waits = demand ~= '0' and now <= tonumber(promised) + GRACE
      if waits then demands[lane] = demands[lane] + tonumber(demand) end
      table.insert(others[lane], { id = id, virtual = tonumber(virtual), demand = tonumber(demand), waits = waits })
    end
  end
  born = #all == 0
  function write_turn(lane, virtual, demand, promised)
    call('HSET', turns, (lane - 1) .. me, string.format('%.0f %.0f %.0f', virtual, demand, promised))
  end
end
