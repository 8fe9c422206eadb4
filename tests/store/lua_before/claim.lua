-- Take over a partition. KEYS: cursor. ARGV: generation, token, log id, seconds after which a silent holder yields, ttl.
-- Returns {"lost"} | {"stale", holder...} | {"ok", cursor...}; nothing is written unless ok.
local held = redis.call("HMGET", KEYS[1], "next", "generation", "claimed_ms", "applied_ms", "token", "log_id")
if not held[1] then return {"lost"} end
local now = now_ms()
local last_sign = math.max(tonumber(held[3] or 0), tonumber(held[4] or 0))
-- Generations start again at 1 when the group is deleted: one that has been silent for long binds nobody. The token
-- alone keeps the counts right; the generation only keeps a zombie from taking the partition back for a moment.
if held[5] ~= ARGV[2] and tonumber(held[2] or 0) > tonumber(ARGV[1]) and now - last_sign < ARGV[4] * 1000 then
  return {"stale", redis.call("HMGET", KEYS[1], "next", "high", "token", "generation", "idle", "log_id", "rebuild_until", "recent")}
end
redis.call("HSET", KEYS[1], "token", ARGV[2], "generation", ARGV[1], "idle", "0", "claimed_ms", now)
if not held[6] or held[6] == "" then redis.call("HSET", KEYS[1], "log_id", ARGV[3]) end
redis.call("EXPIRE", KEYS[1], ARGV[5])
return {"ok", redis.call("HMGET", KEYS[1], "next", "high", "token", "generation", "idle", "log_id", "rebuild_until", "recent")}
