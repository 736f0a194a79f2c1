-- How the limit stands. Changes nothing. Comes after limit_rule.lua.
-- returns  {permits used in the first rate's window, µs until the next permit is due, µs until the hold ends}
return { count_used(), due_of(1) - now, max(0, held - now) }
