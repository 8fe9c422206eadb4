-- Add an entry of another shard's stream, once. KEYS: stream, what was added, then the retries of each receiver that has
-- tried the entry. ARGV: mark of the entry, ttl s, number of fields and values, these, then the state of each one's
-- retries. Returns 1, or 0 where it was added before.
local fields = tonumber(ARGV[3])
if redis.call("HSETNX", KEYS[2], ARGV[1], "1") == 0 then return 0 end
local id = redis.call("XADD", KEYS[1], "*", unpack(ARGV, 4, 3 + fields))
for i = 3, #KEYS do redis.call("HSET", KEYS[i], id, ARGV[1 + fields + i]) end
for i = 1, #KEYS do redis.call("EXPIRE", KEYS[i], ARGV[2]) end
return 1
