-- Store the newest values of some keys and announce them, as one step: nothing is stored without being announced.
-- KEYS[1]  last: hash, key -> "version published_at payload"
-- KEYS[2]  meta: hash; `epoch` names this life of the data, `version` counts ticks of the partition
-- KEYS[3]  sent: number of this producer's newest frame, so that a frame sent twice is published once
-- KEYS[4]  channel of the partition
-- ARGV[1]  epoch to use where there is none yet
-- ARGV[2]  number of the frame, counted by the producer
-- ARGV[3]  seconds to remember the producer
-- ARGV[4..]  key, payload, key, payload, ...
-- returns  how many subscribers the channel had; -1 when the frame had been published before
-- The message is "epoch first_version published_at\n" and a msgpack array of keys and payloads; tick i has the version
-- first_version + i - 1. Versions are given here, so they are the order of the server, whoever publishes.
local number = tonumber(ARGV[2])
if tonumber(redis.call('GET', KEYS[3]) or 0) >= number then return -1 end
redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[3])
redis.call('HSETNX', KEYS[2], 'epoch', ARGV[1])
local epoch = redis.call('HGET', KEYS[2], 'epoch')
local count = (#ARGV - 3) / 2
local newest = redis.call('HINCRBY', KEYS[2], 'version', count)
local time = redis.call('TIME')
local at = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
local body, fields = {}, {}
for i = 4, #ARGV, 2 do
  local version = string.format('%.0f', newest - count + (i - 2) / 2)
  body[#body + 1], body[#body + 2] = ARGV[i], ARGV[i + 1]
  fields[#fields + 1], fields[#fields + 2] = ARGV[i], version .. ' ' .. at .. ' ' .. ARGV[i + 1]
end
for i = 1, #fields, 2000 do  -- unpack has a limit
  redis.call('HSET', KEYS[1], unpack(fields, i, math.min(i + 1999, #fields)))
end
local first = string.format('%.0f', newest - count + 1)
return redis.call('PUBLISH', KEYS[4], epoch .. ' ' .. first .. ' ' .. at .. '\n' .. cmsgpack.pack(body))
