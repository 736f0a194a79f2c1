-- How the limit stands. Changes nothing. Comes after limit_rule.lua.
-- returns  {permits used in the first rate's window, permits in it that are reserved for moments to come, µs until the
--          next permit is due, µs until the hold ends}
local low, high = 0, used + 1
while high - low > 1 do
  local middle = floor((low + high) / 2)
  if tonumber(call('LINDEX', ring, middle - 1) or newest) > now then low = middle else high = middle end
end
return { used - low, low, due_of(1) - now, max(0, held - now) }
