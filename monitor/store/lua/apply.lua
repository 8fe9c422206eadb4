-- Apply one partition's delta whole or not at all. KEYS: cursor, open, facts, totals, closed, reasons, then those of the
-- buckets and images in the delta, in any order. ARGV: the delta (msgpack).
-- Returns {status, next offset where Redis stands, last bucket sealed or false}, or the keys that it needs besides: those
-- of the bucket that takes what is late. Everything is checked and computed before the first write.
local delta = cmsgpack.unpack(ARGV[1])
local cursor, open, facts, totals, closed, reasons = unpack(KEYS, 1, 6)

local held = redis.call("HMGET", cursor, "next", "token", "high", "sealed", "judged_bucket", "judged_until")
if not held[1] then return {"lost"} end
if held[2] ~= delta.token then return {"fenced", held[1]} end
if held[1] ~= delta.expect then
  if less(held[1], delta.next) then return {"rewind", held[1]} end
  return {"dup", held[1]}
end
local sealed = tonumber(held[4] or -1)
-- Set by seal.lua when this node had fallen back: images before that offset were judged with the buckets up to this one.
local judged = held[6] and less(delta.expect, held[6]) and tonumber(held[5]) or -1

-- Streams beyond the limit are counted together under one name, so that a flood of names cannot fill the server.
local known = redis.call("HLEN", totals) - redis.call("HEXISTS", totals, OTHER) - redis.call("HEXISTS", totals, GONE)
local names, sums, over_limit = {}, {}, 0
local function name_of(stream)
  if not names[stream] then
    local packed = redis.call("HGET", totals, stream)
    if packed or stream == OTHER then
      names[stream] = stream
    elseif known < delta.max_streams then
      known = known + 1
      names[stream] = stream
    else
      names[stream] = OTHER
      packed = redis.call("HGET", totals, OTHER)
    end
    sums[names[stream]] = sums[names[stream]] or packed or nil
  end
  return names[stream]
end

local buckets = {} -- key -> {index = open or closed, member = of the index, start = ms, streams = {name -> vector}}
for _, entry in ipairs(delta.vectors) do
  local fingerprint, start, stream, vector, worst = unpack(entry)
  local name = name_of(stream)
  local index = open
  if tonumber(start) <= judged then
    index = closed
  elseif tonumber(start) <= sealed then
    -- sealed buckets never change: the oldest open one takes the counts, as late
    start = string.format("%.0f", sealed + delta.bucket_ms)
    vector = all_late(vector)
  end
  local images, rejected, late, duplicates, changes = tail_of(vector)
  -- profiles in shadow count the same images once more
  if string.sub(fingerprint, 1, #SHADOW) ~= SHADOW then
    sums[name] = totals_plus(sums[name], images, rejected, late, duplicates, changes)
    if name ~= stream then over_limit = over_limit + images + rejected end
  end
  local member = fingerprint .. ":" .. start
  local key = delta.prefix .. ":b:" .. member
  local bucket = buckets[key] or {index = index, member = member, start = start, streams = {}, worst = {}}
  buckets[key] = bucket
  if is_declared(key) then
    bucket.streams[name] = merged(bucket.streams[name] or redis.call("HGET", key, name), vector, key)
  end
  if #worst > 0 then
    local images_key = delta.prefix .. ":w:" .. member
    if is_declared(images_key) then
      local packed = bucket.worst[name] or redis.call("HGET", images_key, name)
      bucket.worst[name] = worst_of(packed, worst, delta.exemplars_kept)
    end
  end
end

local image_keys = {}
for i, image in ipairs(delta.images) do
  image_keys[i] = delta.prefix .. ":" .. image[1] .. ":" .. name_of(image[2])
  is_declared(image_keys[i])
end
if undeclared and undeclared[2] then return undeclared end

for key, bucket in pairs(buckets) do
  for name, vector in pairs(bucket.streams) do redis.call("HSET", key, name, vector) end
  redis.call("EXPIRE", key, delta.kept_s)
  redis.call("ZADD", bucket.index, bucket.start, bucket.member)
  if next(bucket.worst) then
    local images_key = delta.prefix .. ":w:" .. bucket.member
    for name, packed in pairs(bucket.worst) do redis.call("HSET", images_key, name, packed) end
    redis.call("EXPIRE", images_key, delta.kept_s)
  end
end
for name, packed in pairs(sums) do redis.call("HSET", totals, name, packed) end
for stream, packed in pairs(delta.facts) do
  if name_of(stream) == stream then redis.call("HSET", facts, stream, packed) end
end
for i, image in ipairs(delta.images) do
  local key, score, packed, first, last = image_keys[i], unpack(image, 3)
  redis.call("ZADD", key, score, packed)
  redis.call("ZREMRANGEBYRANK", key, first, last)
  redis.call("EXPIRE", key, delta.exemplar_retention_s)
end
for _, entry in ipairs(delta.reasons) do
  redis.call("HINCRBY", reasons, name_of(entry[1]) .. "\0" .. entry[2], entry[3])
end
local now = now_ms()
redis.call("HSET", cursor, "next", delta.next, "high", math.max(tonumber(held[3] or 0), delta.high),
  "applied_ms", now, "idle", "0", "recent", delta.recent)
if over_limit > 0 then
  redis.call("HINCRBY", cursor, "over_limit", over_limit)
  redis.call("HSET", cursor, "over_limit_ms", now)
end
for i = 1, 6 do redis.call("EXPIRE", KEYS[i], delta.cursor_ttl_s) end
return {"ok", delta.next, held[4]}
