-- Make a bucket immutable in one partition. KEYS: cursor, open, closed, totals. ARGV: prefix, bucket start ms,
-- retention s, ttl s, schema. Returns the fingerprints that have counts in it. Sealing again changes nothing.
-- Older buckets that are still open here (an idle partition woke up between the evaluator's look and this call) are
-- folded into this one, as late: none is lost.
local cursor, open, closed, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prefix, start = ARGV[1], ARGV[2]
local held = redis.call("HMGET", cursor, "next", "schema")
if not held[1] then return {} end
local refused = refusal(held[2], ARGV[5])
if refused then return refused end

local function fold(member)
  local from = prefix .. ":b:" .. member
  local target = string.match(member, "^(.*):%d+$") .. ":" .. start
  local into = prefix .. ":b:" .. target
  local flat = redis.call("HGETALL", from)
  for i = 1, #flat, 2 do
    local name, vector = flat[i], flat[i + 1]
    local images, _, late = tail_of(vector)
    redis.call("HSET", into, name, merged(redis.call("HGET", into, name), all_late(vector), into))
    redis.call("HSET", totals, name, totals_plus(redis.call("HGET", totals, name), 0, 0, images - late, 0, 0))
  end
  redis.call("DEL", from)
  redis.call("ZREM", open, member)
  if #flat > 0 then
    redis.call("ZADD", open, start, target)
    redis.call("EXPIRE", into, ARGV[3])
  end
end

if tonumber(redis.call("HGET", cursor, "sealed") or -1) < tonumber(start) then
  for _, member in ipairs(redis.call("ZRANGEBYSCORE", open, "-inf", "(" .. start)) do fold(member) end
  redis.call("HSET", cursor, "sealed", start)
  for _, member in ipairs(redis.call("ZRANGEBYSCORE", open, start, start)) do
    redis.call("ZREM", open, member)
    redis.call("ZADD", closed, start, member)
  end
  redis.call("ZREMRANGEBYSCORE", closed, "-inf", string.format("(%.0f", start - ARGV[3] * 1000))
  redis.call("EXPIRE", closed, ARGV[4])
end
local fingerprints = {}
for i, member in ipairs(redis.call("ZRANGEBYSCORE", closed, start, start)) do
  fingerprints[i] = string.match(member, "^(.*):%d+$")
end
return fingerprints
