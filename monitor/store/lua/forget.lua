-- Forget streams of one partition. KEYS: facts, totals, reasons. ARGV: each stream and its facts, as they were read.
-- Returns how many were forgotten; one whose facts have changed has got a record since, and stays.
-- Their totals and reasons are added to those of GONE: what is summed over all streams stays as it is.
local facts, totals, reasons = KEYS[1], KEYS[2], KEYS[3]
local forgotten, count, sum = {}, 0, redis.call("HGET", totals, GONE)
for i = 1, #ARGV, 2 do
  local name = ARGV[i]
  if redis.call("HGET", facts, name) == ARGV[i + 1] then
    local counted = redis.call("HGET", totals, name)
    if counted then sum = totals_plus(sum, totals_of(counted)) end
    redis.call("HDEL", facts, name)
    redis.call("HDEL", totals, name)
    forgotten[name], count = true, count + 1
  end
end
if count == 0 then return 0 end
if sum then redis.call("HSET", totals, GONE, sum) end
local flat = redis.call("HGETALL", reasons)
for i = 1, #flat, 2 do
  local name, reason = string.match(flat[i], "^(.*)%z([^%z]*)$")
  if forgotten[name] then
    redis.call("HINCRBY", reasons, GONE .. "\0" .. reason, flat[i + 1])
    redis.call("HDEL", reasons, flat[i])
  end
end
return count
