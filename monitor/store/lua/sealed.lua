-- Say that a bucket is sealed in every partition: each shard judges it now. KEYS: evaluator of the first shard, what is
-- sealed, offsets up to which the images of the partitions count in it. ARGV: the last bucket sealed before (-1 for none),
-- the bucket, the last one that was sealed while muted, schema, ttl s, then (partition, offset) each.
-- Returns 1, or 0 where another process has said so, or the state has changed; then nothing changed.
local evaluator, sealed, judged = unpack(KEYS)
local before, bucket, muted_until, schema, ttl_s = unpack(ARGV, 1, 5)
local refused = refusal(redis.call("HGET", evaluator, "schema"), schema)
if refused then return refused end
-- a version without shards noted it with each decision
local held = redis.call("HGET", sealed, "bucket") or redis.call("HGET", evaluator, "bucket") or "-1"
if held ~= before then return 0 end
redis.call("HSET", sealed, "bucket", bucket, "muted_until", muted_until)
for i = 6, #ARGV, 2 do redis.call("HSET", judged, ARGV[i], ARGV[i + 1]) end
for i = 2, 3 do redis.call("EXPIRE", KEYS[i], ttl_s) end
return 1
