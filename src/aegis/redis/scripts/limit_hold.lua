-- Let nobody be due before `now + pause`; a hold only ever extends forward. Everybody is told.
-- Comes between limit_rule.lua and limit_save.lua.
-- KEYS[4]      bell: the channel on which everybody hears `hold` and how many µs are left
-- ARGV[own]    pause, µs
-- ARGV[own+1]  PUBLISH or SPUBLISH
-- answers      µs from now until the hold ends
held = max(held, now + tonumber(ARGV[own]))
changed = true
call(ARGV[own + 1], KEYS[4], string.format('hold %.0f', held - now))
local turns, reply = KEYS[3], held - now
