-- Record that an evaluator of the fleet is at work. KEYS: heartbeat. ARGV: now ms, longest pause ms, ttl s.
-- Returns since when (ms) it has evaluated without a longer pause.
local held = redis.call("HMGET", KEYS[1], "last", "since")
local since = held[2]
if not held[1] or ARGV[1] - held[1] > tonumber(ARGV[2]) then since = ARGV[1] end
redis.call("HSET", KEYS[1], "last", ARGV[1], "since", since)
redis.call("EXPIRE", KEYS[1], ARGV[3])
return since
