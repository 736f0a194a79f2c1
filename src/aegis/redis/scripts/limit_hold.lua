-- Let nobody be due before `now + pause`; a hold only ever extends forward. Everybody is told.
-- Comes after limit_rule.lua.
-- KEYS[4]      bell: the channel on which everybody hears `hold` and how many µs are left
-- ARGV[own]    pause, µs
-- ARGV[own+1]  PUBLISH or SPUBLISH
-- returns      µs from now until the hold ends
held = max(held, now + tonumber(ARGV[own]))
save()
call(ARGV[own + 1], KEYS[4], 'hold ' .. text(held - now))
return held - now
