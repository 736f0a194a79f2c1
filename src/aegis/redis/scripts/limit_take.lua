-- `allow`: take what is due now and nobody waits for. Callers of one turn of a loop come together, in order.
-- Comes between limit_queue.lua and limit_save.lua.
-- ARGV[own..]  pairs: how many callers, what each of them asks for
-- answers      for each pair: how many of them were served (the first ones), permits left in the first rate's window,
--              µs until one of those not served would be; or a plain number, the permits left, when all were served who
--              asked for the same
local reply
local ahead = demands and demands[1] + demands[2] or 0 -- BULK does not come before those who do not wait
for i = own, #ARGV, 2 do
  local callers, cost = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  local served = max(0, floor((due_by(now, ahead + callers * cost) - ahead) / cost))
  if served > 0 then push(now, served * cost) end
  local left = max(0, limits[1] - used)
  if served == callers and #ARGV == own + 1 then
    reply = left
  else
    reply = reply or {}
    reply[#reply + 1] = served
    reply[#reply + 1] = left
    reply[#reply + 1] = served < callers and due_of(ahead + cost) - now or 0
  end
end
