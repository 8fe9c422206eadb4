-- Commit everything that one closed bucket decides in a shard. KEYS: evaluator, alerts, outbox, documents of what fires,
-- alerts that ended.
-- ARGV: the decision (msgpack). Returns 1, or 0 when another evaluator has moved the version on; then nothing changed.
local decision = cmsgpack.unpack(ARGV[1])
local evaluator, alerts, outbox, firing, past = unpack(KEYS)
local held = redis.call("HMGET", evaluator, "version", "schema", "bucket", "past_bucket")
local refused = refusal(held[2], decision.schema)
if refused then return refused end
if (held[1] or "0") ~= decision.expect then return 0 end

for _, alert in ipairs(decision.alerts) do
  if alert[2] then
    redis.call("HSET", alerts, alert[1], alert[2])
  else
    redis.call("HDEL", alerts, alert[1])
  end
end
for _, entry in ipairs(decision.firing) do
  if entry[2] ~= "" then
    redis.call("HSET", firing, entry[1], entry[2])
  else
    redis.call("HDEL", firing, entry[1])
  end
end
for _, ended in ipairs(decision.past) do redis.call("ZADD", past, ended[1], ended[2]) end
redis.call("ZREMRANGEBYSCORE", past, "-inf", "(" .. decision.past_since)
redis.call("ZREMRANGEBYRANK", past, 0, -1 - decision.past_limit)
if held[3] ~= held[4] or tonumber(held[3] or -1) < 0 then  -- the first that notes what ended, or after one that did not
  redis.call("HSET", evaluator, "past_since", decision.bucket)
end
redis.call("HSET", evaluator, "past_bucket", decision.bucket)
for _, document in ipairs(decision.outbox) do redis.call("XADD", outbox, "*", "document", document) end
redis.call("HINCRBY", evaluator, "version", 1)
redis.call("HSET", evaluator, "bucket", decision.bucket)
-- A hard limit, for receivers that are dead for days; what it cuts off is counted and shown.
local surplus = redis.call("XLEN", outbox) - decision.outbox_limit
if surplus > 0 then
  redis.call("XTRIM", outbox, "MAXLEN", decision.outbox_limit)
  redis.call("HINCRBY", evaluator, "outbox_dropped", surplus)
end
for i = 1, #KEYS do redis.call("EXPIRE", KEYS[i], decision.ttl_s) end
return 1
