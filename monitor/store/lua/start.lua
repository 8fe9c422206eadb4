-- Create a partition's cursor, or move one that the caller holds (a gap, a recreated log). KEYS: cursor.
-- ARGV: generation, token, next offset, log id, ttl, end of the log where lost state is rebuilt (else ""), schema.
-- Returns {"stale", the holder's cursor} | {"ok", cursor}.
local held = redis.call("HMGET", KEYS[1], "next", "token", "schema")
local refused = refusal(held[3], ARGV[7])
if refused then return refused end
if held[1] and held[2] ~= ARGV[2] then
  return {"stale", cursor_at(KEYS[1])}
end
hold(KEYS[1], ARGV[1], ARGV[2], ARGV[7])
redis.call("HSET", KEYS[1], "next", ARGV[3], "log_id", ARGV[4])
redis.call("HSETNX", KEYS[1], "high", "0")
if ARGV[6] ~= "" then redis.call("HSET", KEYS[1], "rebuild_until", ARGV[6]) end
redis.call("EXPIRE", KEYS[1], ARGV[5])
return {"ok", cursor_at(KEYS[1])}
