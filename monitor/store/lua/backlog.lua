-- How much a receiver still has to get. KEYS: outbox. ARGV: receiver. Returns {entries, id of the oldest or false}.
local outbox, group = KEYS[1], ARGV[1]
local last, pending, oldest = "0-0", 0, false
if redis.call("EXISTS", outbox) == 0 then return {0, false} end
for _, info in ipairs(groups(outbox)) do
  if info.name == group then
    last, pending = info["last-delivered-id"], info.pending
    if pending > 0 then oldest = redis.call("XPENDING", outbox, group)[2] end
  end
end
-- counted by reading: the group's own lag exists only from 7.0 on, and the outbox is nearly always empty
local waiting = redis.call("XRANGE", outbox, "(" .. last, "+")
if not oldest and waiting[1] then oldest = waiting[1][1] end
return {pending + #waiting, oldest}
