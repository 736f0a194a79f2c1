-- `allow`: take what is due now and nobody waits for. Callers of one turn of a loop come together, in order.
-- Comes after limit_rule.lua and limit_queue.lua.
-- ARGV[own..]  pairs: how many callers, what each of them asks for
-- returns      for each pair: how many of them were served (the first ones), permits left in the first rate's window,
--              µs until one of those not served would be
local ahead = 0
if crowd > now then
  local others = read_turns('')
  ahead = demand_of(others[1]) + demand_of(others[2]) -- BULK does not come before those who do not wait
end
local reply, taken = {}, 0
for i = own, #ARGV, 2 do
  local callers, cost = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  local served = max(0, min(callers, floor((due_by(now, ahead + callers * cost) - ahead) / cost)))
  if served > 0 then
    push(now, served * cost)
    taken = taken + served * cost
  end
  reply[#reply + 1] = served
  reply[#reply + 1] = max(0, limits[1] - count_used())
  reply[#reply + 1] = served < callers and due_of(ahead + cost) - now or 0
end
if taken > 0 then trim(taken) end
if taken > 0 or disturbed then save() end
return reply
