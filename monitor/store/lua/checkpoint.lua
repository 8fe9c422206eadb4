-- Store rows of the rules as of the last bucket decided. KEYS: evaluator, marks, then the hashes that are written. ARGV:
-- version, schema, ttl s, number of marks, (slice, bucket that its rows are complete up to) each, then (number of the
-- row's hash, of the one in which an earlier version kept it, stream, row) each. Returns 1, or 0 when another evaluator
-- has moved the version on; then nothing changed.
local evaluator, marks = KEYS[1], KEYS[2]
local held = redis.call("HMGET", evaluator, "version", "schema")
local refused = refusal(held[2], ARGV[2])
if refused then return refused end
if (held[1] or "0") ~= ARGV[1] then return 0 end

local first = 5 + 2 * tonumber(ARGV[4])
for i = 5, first - 2, 2 do redis.call("HSET", marks, ARGV[i], ARGV[i + 1]) end
for i = first, #ARGV, 4 do
  redis.call("HSET", KEYS[2 + tonumber(ARGV[i])], ARGV[i + 2], ARGV[i + 3])
  redis.call("HDEL", KEYS[2 + tonumber(ARGV[i + 1])], ARGV[i + 2])
end
for i = 2, #KEYS do redis.call("EXPIRE", KEYS[i], ARGV[3]) end
return 1
