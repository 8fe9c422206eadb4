-- Claim a partition. KEYS: cursor. ARGV: generation, token, log id, seconds after which a silent holder yields, ttl,
-- schema. Returns {"lost"} | {"stale", the holder's cursor} | {"ok", cursor}; nothing is written unless ok.
local held = redis.call("HMGET", KEYS[1], "next", "epoch", "taken_ms", "applied_ms", "token", "log_id", "schema",
  "generation", "claimed_ms")
if not held[1] then return {"lost"} end
local refused = refusal(held[7], ARGV[6])
if refused then return refused end
local now = now_ms()
-- a cursor of the first schema has only the fields that `hold` takes from it
local generation, taken_ms = held[2] or held[8], held[3] or held[9]
local last_sign = math.max(tonumber(taken_ms or 0), tonumber(held[4] or 0))
-- Generations start again at 1 when the group is deleted: one of a holder that has been silent for long
-- does not count. The token alone keeps the counts right; the generation only keeps a former owner from taking the
-- partition back for a moment.
if held[5] ~= ARGV[2] and tonumber(generation or 0) > tonumber(ARGV[1]) and now - last_sign < ARGV[4] * 1000 then
  return {"stale", cursor_at(KEYS[1])}
end
hold(KEYS[1], ARGV[1], ARGV[2], ARGV[6])
if not held[6] or held[6] == "" then redis.call("HSET", KEYS[1], "log_id", ARGV[3]) end
redis.call("EXPIRE", KEYS[1], ARGV[5])
return {"ok", cursor_at(KEYS[1])}
