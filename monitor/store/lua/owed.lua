-- What each receiver has of an outbox. KEYS: outbox. Returns {receiver, last entry that it was given, those of them that it
-- has not settled...} for each group; none where there is no outbox.
local found = {}
if redis.call("EXISTS", KEYS[1]) == 0 then return found end
for _, info in ipairs(groups(KEYS[1])) do
  local one = {info.name, info["last-delivered-id"]}
  if info.pending > 0 then
    for _, entry in ipairs(redis.call("XPENDING", KEYS[1], info.name, "-", "+", info.pending)) do one[#one + 1] = entry[1] end
  end
  found[#found + 1] = one
end
return found
