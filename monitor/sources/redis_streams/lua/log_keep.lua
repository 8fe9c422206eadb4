-- Keep a lease that we hold. KEYS: lease. ARGV: token, ms. Returns 1, or 0 where it is not ours any more.
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call("PEXPIRE", KEYS[1], ARGV[2])
