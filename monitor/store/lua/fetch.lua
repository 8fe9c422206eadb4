-- What a receiver still has to get, oldest first. KEYS: outbox, retries. ARGV: receiver, how many, now ms, ttl s.
-- Returns {{entry id, document, retry state or false}, ...}; the document is "" where the next try is not due yet.
-- One consumer name for all replicas: the next holder of the lease continues where the last one stopped, and needs to
-- claim nothing from it.
local outbox, retries, group = KEYS[1], KEYS[2], ARGV[1]

local function read(from, count)
  local reply = redis.pcall("XREADGROUP", "GROUP", group, "dispatcher", "COUNT", count, "STREAMS", outbox, from)
  if reply and reply.err then
    if not string.find(reply.err, "NOGROUP", 1, true) then error(reply.err) end
    -- from the start: an entry written before the dispatcher first ran must not be lost
    redis.call("XGROUP", "CREATE", outbox, group, "0", "MKSTREAM")
    redis.call("EXPIRE", outbox, ARGV[4])
    reply = redis.call("XREADGROUP", "GROUP", group, "dispatcher", "COUNT", count, "STREAMS", outbox, from)
  end
  return reply and reply[1] and reply[1][2] or {}
end

-- A change of the number of shards brought the entry here, for some receivers only: the others had it before.
local function is_owed(fields)
  return fields[3] ~= "for" or string.find("\n" .. fields[4] .. "\n", "\n" .. group .. "\n", 1, true)
end

local function due(state)
  local not_before = state and string.match(state, "^%d+:(%d+):")
  return not not_before or tonumber(not_before) <= tonumber(ARGV[3])
end

local entries = read("0", ARGV[2])
local room = tonumber(ARGV[2]) - #entries
if room > 0 then
  for _, entry in ipairs(read(">", room)) do entries[#entries + 1] = entry end
end
local found = {}
for _, entry in ipairs(entries) do
  local id, fields = entry[1], entry[2]
  if fields and is_owed(fields) then
    local state = redis.call("HGET", retries, id)
    found[#found + 1] = {id, due(state) and fields[2] or "", state}
  else -- or cut off by the outbox limit, and counted there; or moved to another shard
    redis.call("XACK", outbox, group, id)
    redis.call("HDEL", retries, id)
  end
end
return found
