-- Show that a member is alive. KEYS: members. ARGV: token, ms after which a silent member is gone.
-- Returns how many there are. By this server's clock: members' own clocks may differ.
local now = now_ms()
redis.call("ZADD", KEYS[1], now, ARGV[1])
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now - ARGV[2])
redis.call("PEXPIRE", KEYS[1], ARGV[2])
return redis.call("ZCARD", KEYS[1])
