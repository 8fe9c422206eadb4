-- A receiver is done with an entry. KEYS: outbox, retries, held, dead. ARGV: receiver, entry id, alert id ("" holds
-- nothing), what to hold ("" drops it), reason it is dead ("" delivered), document, ttl s, dead letters kept.
-- Returns 1, or 0 where it was settled before; then nothing but the outbox's length changes.
local outbox, retries, held, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, id, alert = ARGV[1], ARGV[2], ARGV[3]

local function parts(entry) return string.match(entry, "^(%d+)-(%d+)$") end
local function before(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return less(a_ms, b_ms) or (a_ms == b_ms and less(a_seq, b_seq))
end
local function after(entry)
  local ms, seq = parts(entry)
  return ms .. "-" .. string.format("%.0f", seq + 1)
end

-- The first entry that some receiver still needs.
local function first_needed()
  local first
  for _, info in ipairs(groups(outbox)) do
    local needed = after(info["last-delivered-id"])
    if info.pending > 0 then needed = redis.call("XPENDING", outbox, info.name)[2] end
    if not first or before(needed, first) then first = needed end
  end
  return first
end

if redis.call("EXISTS", outbox) == 0 then return 0 end
local acknowledged = redis.call("XACK", outbox, group, id)
redis.call("HDEL", retries, id)
-- A former dispatcher that was slow to answer must not hold again what has been resolved since.
if alert ~= "" and acknowledged == 1 then
  if ARGV[4] ~= "" then
    redis.call("HSET", held, alert, ARGV[4])
    redis.call("EXPIRE", held, ARGV[7])
  else
    redis.call("HDEL", held, alert)
  end
end
if ARGV[5] ~= "" and acknowledged == 1 then
  redis.call("XADD", dead, "MAXLEN", ARGV[8], "*", "receiver", group, "entry", id, "reason", ARGV[5], "document", ARGV[6])
  redis.call("EXPIRE", dead, ARGV[7])
end
local first = first_needed()
if first then redis.call("XTRIM", outbox, "MINID", first) end
return acknowledged
