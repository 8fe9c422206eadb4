-- Tell of a trouble of the monitor's own, once per episode. KEYS: open episodes, outbox. ARGV: name, document, ttl s.
-- Returns 1, or 0 where that trouble is known already.
if redis.call("HSETNX", KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call("XADD", KEYS[2], "*", "document", ARGV[2])
for i = 1, 2 do redis.call("EXPIRE", KEYS[i], ARGV[3]) end
return 1
