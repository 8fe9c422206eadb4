-- Make partitions known. KEYS: partitions, registrations. ARGV: ttl s, then the partitions.
-- The count of registrations grows while some process is configured to read the partition.
for i = 2, #ARGV do
  redis.call("SADD", KEYS[1], ARGV[i])
  redis.call("HINCRBY", KEYS[2], ARGV[i], 1)
end
for i = 1, 2 do redis.call("EXPIRE", KEYS[i], ARGV[1]) end
return 1
