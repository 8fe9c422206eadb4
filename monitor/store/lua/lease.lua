-- Take or keep the evaluator's lease. KEYS: lease, evaluator, lease of the versions without a schema number. ARGV: token,
-- ttl ms ("0" gives it up), schema, ttl s of the other keys. Returns 1 when held.
-- Whoever asks moves the schema forward: an older holder is refused when it asks again or decides.
local lease, evaluator, first_lease, schema = KEYS[1], KEYS[2], KEYS[3], ARGV[3]
local held = redis.call("HGET", evaluator, "schema")
local refused = refusal(held, schema)
if refused then return refused end
if held ~= schema then
  redis.call("HSET", evaluator, "schema", schema)
  redis.call("EXPIRE", evaluator, ARGV[4])
end
if redis.call("GET", first_lease) ~= "later version" then redis.call("SET", first_lease, "later version", "EX", ARGV[4]) end
local holder = redis.call("GET", lease)
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == "0" then
  redis.call("DEL", lease)
else
  redis.call("SET", lease, ARGV[1], "PX", ARGV[2])
end
return 1
