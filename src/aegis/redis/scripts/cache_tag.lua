-- The generation of a tag: made where there is none, and kept alive for what carries it.
-- KEYS[1] generation. It is a name and not a count: one that was lost can never come back and revive what it covered.
-- ARGV[1] name of a new generation, unique; '' = make none
-- ARGV[2] how long it must live at least, ms
-- returns the generation, '' for none
-- It is given twice what it must live: each prolongation is reported to every process as a change of the tag, so they
-- shall be rare.
local life = string.format('%.0f', 2 * ARGV[2])
local generation = redis.call('GET', KEYS[1])
if not generation then
  if ARGV[1] == '' then return '' end
  redis.call('SET', KEYS[1], ARGV[1], 'PX', life)
  return ARGV[1]
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], life) end
return generation
