-- Reserve `cost` permits at the earliest moment that every rate allows, if that is soon enough; else change nothing.
-- KEYS[1]  ring: due times of permits, newest first, µs since epoch
-- KEYS[2]  hold: nobody is due before this, µs since epoch
-- ARGV[1]  now: µs since epoch, or -1 for the server's clock
-- ARGV[2]  cost: permits asked for, at least 1
-- ARGV[3]  longest wait, µs; -1 = any; -2 = look, change nothing
-- ARGV[4..]  one pair per rate: limit, window in µs
-- returns  {1 reserved | 0 not, wait until due in µs, due as text, permits left in the first rate's window now}
-- Exact because permit i is at least one window after permit i - limit, for every rate; `newest` keeps the order and
-- survives a clock that steps back. Trimming keeps as many past permits as the largest limit, however old: when permits
-- that are not due yet are given back (limit_cancel), or the clock steps back, the rule looks at those.
-- Every number is an integer below 2^53, so a double holds it exactly; numbers leave through %.0f.
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local cost, longest = tonumber(ARGV[2]), tonumber(ARGV[3])
local ring, due = KEYS[1], now

local held = tonumber(redis.call('GET', KEYS[2]) or 0)
if held > due then due = held end
local newest = tonumber(redis.call('LINDEX', ring, 0) or 0)
if newest > due then due = newest end

local widest, most = 0, 0
for i = 4, #ARGV, 2 do
  local limit, window = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  if window > widest then widest = window end
  if limit > most then most = limit end
  local older = tonumber(redis.call('LINDEX', ring, limit - cost) or 0)
  if older > 0 and older + window > due then due = older + window end
end

-- Permits in the first rate's window: entries are sorted, so the first one that is old enough is found by halving.
local limit, window = tonumber(ARGV[4]), tonumber(ARGV[5])
local low, high = 0, math.min(limit, redis.call('LLEN', ring))
while low < high do
  local middle = math.floor((low + high) / 2)
  if tonumber(redis.call('LINDEX', ring, middle)) > now - window then low = middle + 1 else high = middle end
end
local left = limit - low

local wait = due - now
local text = string.format('%.0f', due)
if longest == -2 or (longest >= 0 and wait > longest) then
  return {0, string.format('%.0f', wait), text, left}
end
for _ = 1, cost do redis.call('LPUSH', ring, text) end
while true do
  local oldest = redis.call('LINDEX', ring, -1)
  if not oldest or tonumber(oldest) > now - widest then break end
  local newer = redis.call('LINDEX', ring, -1 - most)
  if not newer or tonumber(newer) > now then break end
  redis.call('RPOP', ring)
end
redis.call('PEXPIRE', ring, string.format('%.0f', math.ceil((wait + widest) / 1000) + 1000))
return {1, string.format('%.0f', wait), text, math.max(0, left - cost)}
