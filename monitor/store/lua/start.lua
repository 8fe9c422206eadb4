-- Create a partition's cursor, or move one that the caller holds (a gap, a recreated log). KEYS: cursor.
-- ARGV: generation, token, next offset, log id, ttl, end of the log where lost state is rebuilt (else "").
-- Returns {"stale", the holder's cursor} | {"ok", cursor}.
local held = redis.call("HMGET", KEYS[1], "next", "token")
if held[1] and held[2] ~= ARGV[2] then
  return {"stale", cursor_at(KEYS[1])}
end
redis.call("HSET", KEYS[1], "next", ARGV[3], "token", ARGV[2], "generation", ARGV[1], "idle", "0",
  "log_id", ARGV[4], "claimed_ms", now_ms())
redis.call("HSETNX", KEYS[1], "high", "0")
if ARGV[6] ~= "" then redis.call("HSET", KEYS[1], "rebuild_until", ARGV[6]) end
redis.call("EXPIRE", KEYS[1], ARGV[5])
return {"ok", cursor_at(KEYS[1])}
