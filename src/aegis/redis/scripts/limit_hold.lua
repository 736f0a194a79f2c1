-- Let nobody be due before `now + pause`; a hold only ever extends forward. Everybody is told.
-- Comes after limit_rule.lua.
-- ARGV[own]    pause, µs
-- ARGV[own+1]  the channel on which everybody hears `hold` and how many µs are left
-- returns      µs from now until the hold ends
held = max(held, now + tonumber(ARGV[own]))
save()
call('PUBLISH', ARGV[own + 1], 'hold ' .. text(held - now))
return held - now
