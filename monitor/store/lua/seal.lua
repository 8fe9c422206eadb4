-- Make a bucket immutable in one partition. KEYS: cursor, open, closed, totals, then those of buckets to be folded. ARGV:
-- prefix, bucket start ms, seconds to keep, ttl s, schema, last bucket decided, offset up to which the images in it and
-- before are judged ("" for none), images kept. Returns the fingerprints that have counts in it, or the keys that it needs
-- besides. Sealing again changes nothing.
-- Older buckets that are still open here (an idle partition woke up between the evaluator's look and this call) are
-- folded into this one, as late: none is lost.
local cursor, open, closed, totals = unpack(KEYS, 1, 4)
local prefix, start, kept_s, ttl_s, schema, decided, judged, kept = unpack(ARGV)
local held = redis.call("HMGET", cursor, "next", "sealed", "schema")
if not held[1] then return {} end
local refused = refusal(held[3], schema)
if refused then return refused end
local sealed = tonumber(held[2] or -1)

local function target_of(member)
  return string.match(member, "^(.*):%d+$") .. ":" .. start
end

-- Counts and images of an older bucket, then those of the one that it is folded into.
local function folded_keys(member)
  local target = target_of(member)
  return prefix .. ":b:" .. member, prefix .. ":w:" .. member, prefix .. ":b:" .. target, prefix .. ":w:" .. target
end

local function fold(member)
  local from, from_images, into, into_images = folded_keys(member)
  local flat = redis.call("HGETALL", from)
  for i = 1, #flat, 2 do
    local name, vector = flat[i], flat[i + 1]
    local images, _, late = tail_of(vector)
    redis.call("HSET", into, name, merged(redis.call("HGET", into, name), all_late(vector), into))
    local row = redis.call("HEXISTS", totals, name) == 1 and name or GONE
    redis.call("HSET", totals, row, totals_plus(redis.call("HGET", totals, row), 0, 0, images - late, 0, 0))
  end
  local images = redis.call("HGETALL", from_images)
  for i = 1, #images, 2 do
    local packed = worst_of(redis.call("HGET", into_images, images[i]), cmsgpack.unpack(images[i + 1]), tonumber(kept))
    redis.call("HSET", into_images, images[i], packed)
    redis.call("EXPIRE", into_images, kept_s)
  end
  redis.call("DEL", from, from_images)
  redis.call("ZREM", open, member)
  if #flat > 0 then
    redis.call("ZADD", open, start, target_of(member))
    redis.call("EXPIRE", into, kept_s)
  end
end

local function close(from, to)
  for _, member in ipairs(redis.call("ZRANGEBYSCORE", open, from, to)) do
    redis.call("ZREM", open, member)
    redis.call("ZADD", closed, string.match(member, "(%d+)$"), member)
  end
end

-- This node fell back behind the evaluator's. What it counts again was judged with the buckets up to `decided`: that
-- stays in its own buckets, which apply.lua goes on with, and in no case comes into the next bucket to be judged.
local fell_back = judged ~= "" and sealed < tonumber(decided)
if fell_back then sealed = tonumber(decided) end

local older = {}
if sealed < tonumber(start) then
  older = redis.call("ZRANGEBYSCORE", open, fell_back and "(" .. decided or "-inf", "(" .. start)
  for _, member in ipairs(older) do
    for _, key in ipairs({folded_keys(member)}) do is_declared(key) end
  end
end
if undeclared and undeclared[2] then return undeclared end

if fell_back then
  close("-inf", decided)
  redis.call("HSET", cursor, "sealed", decided, "judged_bucket", decided, "judged_until", judged)
end
if sealed < tonumber(start) then
  for _, member in ipairs(older) do fold(member) end
  redis.call("HSET", cursor, "sealed", start, "sealed_next", held[1])
  close(start, start)
  redis.call("ZREMRANGEBYSCORE", closed, "-inf", string.format("(%.0f", start - kept_s * 1000))
  redis.call("EXPIRE", closed, ttl_s)
end
local fingerprints = {}
for i, member in ipairs(redis.call("ZRANGEBYSCORE", closed, start, start)) do
  fingerprints[i] = string.match(member, "^(.*):%d+$")
end
return fingerprints
