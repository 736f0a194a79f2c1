-- The generations of tags, made where they are missing.
-- KEYS[..] generations
-- ARGV[1]  name of a new generation: unique
-- ARGV[2]  how long a generation lives at least, ms
-- returns  the generations, in order
local generations = {}
for i, key in ipairs(KEYS) do
  local generation = redis.call('GET', key)
  if not generation then
    generation = ARGV[1]
    redis.call('SET', key, generation, 'PX', ARGV[2])
  elseif redis.call('PTTL', key) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', key, ARGV[2])
  end
  generations[i] = generation
end
return generations
