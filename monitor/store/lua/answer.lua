-- Keep what somebody said of an alert, with the alert in the list of those that have answers, and with the pictures that
-- were shown when it was said. KEYS: answers, list, pictures, index (alerts with pictures by time). ARGV: ttl s, alert,
-- then the answer's id and text, its subject (an image's id; "" the alert as a whole), "1" where what was said of it is
-- withdrawn, bytes kept of an alert's pictures, alerts whose pictures are kept, then name, large and small of each
-- picture, the worst image first. Without an answer, the alert leaves the list where it has none.
-- Returns 1, or 0 where nothing was changed.
--
-- Pictures: {name: picture} and {OF subject: names}; an image that was shown for several subjects is kept once.
local OF = "of "
local answers, list, pictures, index = unpack(KEYS)
local ttl_s, alert, id, text, subject, withdrawn, most_bytes, most_alerts = unpack(ARGV)
if not id then
  if redis.call("EXISTS", answers) == 1 then return 0 end
  return redis.call("HDEL", list, alert)
end

local given, names = {}, {}
for i = 9, #ARGV, 3 do
  given[#given + 1] = {name = ARGV[i], large = ARGV[i + 1], small = ARGV[i + 2]}
  names[#names + 1] = ARGV[i]
end
local evicted = {}
if #given > 0 and not redis.call("ZSCORE", index, alert) then
  evicted = redis.call("ZRANGE", index, 0, -1)
  for i = #evicted, math.max(0, #evicted + 1 - most_alerts) + 1, -1 do evicted[i] = nil end
end
local function pictures_of(other) return string.sub(pictures, 1, #pictures - #alert) .. other end
for _, other in ipairs(evicted) do is_declared(pictures_of(other)) end
if undeclared and undeclared[2] then return undeclared end

redis.call("HSET", answers, id, text)
redis.call("HSET", list, alert, id)
if withdrawn == "1" then
  redis.call("HDEL", pictures, OF .. subject)
elseif #given > 0 then -- where the evidence has expired meanwhile, those of the answer before stay
  redis.call("HSET", pictures, OF .. subject, table.concat(names, " "))
  local now = redis.call("TIME")
  redis.call("ZADD", index, now[1] * 1000000 + now[2], alert) -- two in one millisecond are in their order, too
end
local shown, kept, left = {}, {}, tonumber(most_bytes)
for _, field in ipairs(redis.call("HKEYS", pictures)) do
  if string.sub(field, 1, #OF) ~= OF then
    kept[#kept + 1] = field
  else
    for name in string.gmatch(redis.call("HGET", pictures, field), "%S+") do shown[name] = true end
  end
end
local sizes = {}
for _, name in ipairs(kept) do
  if shown[name] then
    sizes[name] = #redis.call("HGET", pictures, name)
    left = left - sizes[name]
  else
    redis.call("HDEL", pictures, name)
  end
end
for _, picture in ipairs(given) do
  local held = sizes[picture.name] or 0
  for _, packed in ipairs({picture.large, picture.small}) do
    if #packed > held and #packed <= left + held then
      redis.call("HSET", pictures, picture.name, packed)
      left = left + held - #packed
      break
    end
  end
end
if redis.call("EXISTS", pictures) == 0 then redis.call("ZREM", index, alert) end
for _, other in ipairs(evicted) do
  redis.call("DEL", pictures_of(other))
  redis.call("ZREM", index, other)
end
for _, key in ipairs({answers, list, pictures, index}) do redis.call("EXPIRE", key, ttl_s) end
return 1
