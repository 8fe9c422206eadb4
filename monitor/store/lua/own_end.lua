-- End an episode and send the document that says so. KEYS: outbox, open episodes. ARGV: name, the document that opened
-- it, the one that ends it. Returns 1, or 0 where another process has ended it.
if redis.call("HGET", KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call("HDEL", KEYS[2], ARGV[1])
redis.call("XADD", KEYS[1], "*", "document", ARGV[3])
return 1
