-- Keep what somebody said of an alert, with the alert in the list of those that have answers. KEYS: answers, list. ARGV:
-- ttl s, alert id, then the answer's id and text; without these, the alert leaves the list where it has no answers.
-- Returns 1, or 0 where nothing was changed.
local answers, list = KEYS[1], KEYS[2]
local ttl_s, alert, id, text = unpack(ARGV)
if not id then
  if redis.call("EXISTS", answers) == 1 then return 0 end
  return redis.call("HDEL", list, alert)
end
redis.call("HSET", answers, id, text)
redis.call("HSET", list, alert, id)
for i = 1, 2 do redis.call("EXPIRE", KEYS[i], ttl_s) end
return 1
