-- Change the number of shards. KEYS: layout, then the leases of all shards. ARGV: token of the process that holds them,
-- epoch as it was read, shards, last bucket decided by every shard ("" for none), version that the shards go on with, ttl s.
-- Returns 1, or 0 where another process holds one of them or has changed the number; then nothing changed.
-- From now on nobody judges or delivers until `from` is removed.
local layout = KEYS[1]
if (redis.call("HGET", layout, "epoch") or "0") ~= ARGV[2] or redis.call("HEXISTS", layout, "from") == 1 then return 0 end
for i = 2, #KEYS do
  if redis.call("GET", KEYS[i]) ~= ARGV[1] then return 0 end
end
redis.call("HSET", layout, "shards", ARGV[3], "from", #KEYS - 1, "bucket", ARGV[4], "version", ARGV[5])
redis.call("HINCRBY", layout, "epoch", 1)
redis.call("EXPIRE", layout, ARGV[6])
return 1
