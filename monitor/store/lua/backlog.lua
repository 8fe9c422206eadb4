-- How much a receiver still has to get, counted in pages. KEYS: outbox. ARGV: receiver, last id counted before ("" begins
-- with the page that says the oldest), entries a page. Returns {entries, id of the oldest or false, last id or false: the
-- end}.
local outbox, group, after = KEYS[1], ARGV[1], ARGV[2]
local entries, oldest = 0, false
if redis.call("EXISTS", outbox) == 0 then return {0, false, false} end
if after == "" then
  after = "0-0"
  for _, info in ipairs(groups(outbox)) do
    if info.name == group then
      after, entries = info["last-delivered-id"], info.pending
      if entries > 0 then oldest = redis.call("XPENDING", outbox, group)[2] end
    end
  end
end
-- counted by reading: the group's own lag exists only from 7.0 on
local page = redis.call("XRANGE", outbox, "(" .. after, "+", "COUNT", ARGV[3])
if not oldest and page[1] then oldest = page[1][1] end
return {entries + #page, oldest, #page == tonumber(ARGV[3]) and page[#page][1]}
