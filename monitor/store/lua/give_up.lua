-- Remove rows that the rules no longer need. KEYS: evaluator, then the hashes. ARGV: version, schema. Returns 1, or 0 when
-- another evaluator has moved the version on; then nothing changed.
local held = redis.call("HMGET", KEYS[1], "version", "schema")
local refused = refusal(held[2], ARGV[2])
if refused then return refused end
if (held[1] or "0") ~= ARGV[1] then return 0 end
for i = 2, #KEYS do redis.call("DEL", KEYS[i]) end
return 1
