-- What a receiver still has to get, oldest first. KEYS: outbox, retries. ARGV: receiver, how many.
-- Returns {{entry id, document, retry state or false}, ...}. One consumer name for all replicas: whoever holds the
-- lease continues where the last one stopped, with nothing to claim over.
local outbox, retries, group = KEYS[1], KEYS[2], ARGV[1]

local function read(from, count)
  local reply = redis.pcall("XREADGROUP", "GROUP", group, "dispatcher", "COUNT", count, "STREAMS", outbox, from)
  if reply and reply.err then
    if not string.find(reply.err, "NOGROUP", 1, true) then error(reply.err) end
    -- from the start: an entry written before the dispatcher first ran must not be lost
    redis.call("XGROUP", "CREATE", outbox, group, "0", "MKSTREAM")
    reply = redis.call("XREADGROUP", "GROUP", group, "dispatcher", "COUNT", count, "STREAMS", outbox, from)
  end
  return reply and reply[1] and reply[1][2] or {}
end

local entries = read("0", ARGV[2])
local room = tonumber(ARGV[2]) - #entries
if room > 0 then
  for _, entry in ipairs(read(">", room)) do entries[#entries + 1] = entry end
end
local found = {}
for _, entry in ipairs(entries) do
  local id, fields = entry[1], entry[2]
  if fields then
    found[#found + 1] = {id, fields[2], redis.call("HGET", retries, id)}
  else -- cut off by the outbox limit, and counted there
    redis.call("XACK", outbox, group, id)
    redis.call("HDEL", retries, id)
  end
end
return found
