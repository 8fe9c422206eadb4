-- End an episode and send the document that says so. KEYS: open episodes, outbox. ARGV: name, the document that opened
-- it, the one that ends it. Returns 1, or 0 where another process has ended it.
if redis.call("HGET", KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call("HDEL", KEYS[1], ARGV[1])
redis.call("XADD", KEYS[2], "*", "document", ARGV[3])
return 1
