-- KEYS: cursor. ARGV: token, "0" or "1". Returns 1 when the caller holds the partition.
if redis.call("HGET", KEYS[1], "token") ~= ARGV[1] then return 0 end
redis.call("HSET", KEYS[1], "idle", ARGV[2])
return 1
