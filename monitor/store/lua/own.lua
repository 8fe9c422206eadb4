-- Open an episode of an alert about the monitor itself and send its document, once. KEYS: outbox, open episodes.
-- ARGV: name, document, ttl s. Returns 1, or 0 where the episode is open already.
if redis.call("HSETNX", KEYS[2], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call("XADD", KEYS[1], "*", "document", ARGV[2])
for i = 1, 2 do redis.call("EXPIRE", KEYS[i], ARGV[3]) end
return 1
