-- Keep, take and give up the leases of shards, for one process. KEYS: layout of the shards, evaluator of the first shard,
-- lease of the versions without a schema number, processes, lease of the first shard. ARGV: token, ttl ms ("0" leaves),
-- schema, ttl s of the other keys, number of shards that the process is configured for, then the shards to give up.
-- Returns {shards, epoch, shards before or 0, number to change to or 0, shards that the process should hold, processes,
-- then the shards that it holds}, or the keys that it needs besides: the leases of the other shards.
-- Whoever asks moves the schema forward: an older holder is refused when it asks again or decides.
local layout, evaluator, first_lease, processes, tenure = unpack(KEYS, 1, 5)
local token, ttl_ms, schema, ttl_s, wished = unpack(ARGV, 1, 5)
local held = redis.call("HGET", evaluator, "schema")
local refused = refusal(held, schema)
if refused then return refused end
local found = redis.call("HMGET", layout, "shards", "epoch", "from")
local shards, from = tonumber(found[1] or 1), tonumber(found[3] or 0)
local leases = {}
for shard = 0, math.max(shards, from) - 1 do
  leases[shard] = shard == 0 and tenure or (tenure .. ":" .. shard)
  is_declared(leases[shard])
end
if undeclared and undeclared[2] then return undeclared end

if held ~= schema then
  redis.call("HSET", evaluator, "schema", schema)
  redis.call("EXPIRE", evaluator, ttl_s)
end
if redis.call("GET", first_lease) ~= "later version" then redis.call("SET", first_lease, "later version", "EX", ttl_s) end

-- The processes that live, the oldest first: each {token, since, shards configured}.
local now, members, change = now_ms(), {}, tonumber(wished)
local since = string.format("%.0f", now)
local flat = redis.call("HGETALL", processes)
for i = 1, #flat, 2 do
  local began, ends, number = string.match(flat[i + 1], "^(%d+):(%d+):(%d+)$")
  if flat[i] == token then
    since = began
  elseif tonumber(ends) < now then
    redis.call("HDEL", processes, flat[i])
  else
    members[#members + 1] = {flat[i], began}
    if tonumber(number) ~= tonumber(wished) then change = 0 end
  end
end
if ttl_ms == "0" then
  redis.call("HDEL", processes, token)
  for _, lease in pairs(leases) do
    if redis.call("GET", lease) == token then redis.call("DEL", lease) end
  end
  return {shards, tonumber(found[2] or 0), from, 0, 0, #members}
end
redis.call("HSET", processes, token, string.format("%s:%.0f:%s", since, now + ttl_ms, wished))
redis.call("EXPIRE", processes, ttl_s)
members[#members + 1] = {token, since}
table.sort(members, function(a, b) return less(a[2], b[2]) or (a[2] == b[2] and a[1] < b[1]) end)
local rank = 0
for i, member in ipairs(members) do
  if member[1] == token then rank = i end
end

-- The oldest process holds all shards while their number changes, and the first alone while their state is moved.
if change == shards or from > 0 then change = 0 end
local target = math.floor(shards / #members) + (rank <= shards % #members and 1 or 0)
if from > 0 then target = rank == 1 and 1 or 0 elseif change > 0 then target = rank == 1 and shards or 0 end

for i = 6, #ARGV do
  local lease = leases[tonumber(ARGV[i])]
  if lease and redis.call("GET", lease) == token then redis.call("DEL", lease) end
end
local last = from > 0 and 0 or shards - 1
local holders, mine = {}, {}
for shard = 0, math.max(shards, from) - 1 do
  holders[shard] = redis.call("GET", leases[shard])
  if holders[shard] == token then
    if shard <= last then
      redis.call("SET", leases[shard], token, "PX", ttl_ms)
      mine[#mine + 1] = shard
    else
      redis.call("DEL", leases[shard])
    end
  end
end
for shard = 0, last do
  if not holders[shard] and #mine < target then
    redis.call("SET", leases[shard], token, "PX", ttl_ms)
    mine[#mine + 1] = shard
  end
end
return {shards, tonumber(found[2] or 0), from, change, target, #members, unpack(mine)}
