-- Put one longer bucket in the place of the closed buckets that were added up for it. KEYS: cursor, index of the buckets,
-- index of the longer ones, counts (made), counts (longer bucket), images (made), images (longer bucket), then the counts
-- and images of each bucket. ARGV: next offset and last bucket sealed when they were read, 1 where the longer bucket held
-- counts then, which are in the sum, 1 where there were any counts, start of the longer bucket, its member of the index,
-- oldest start to keep, seconds to keep, seconds in which others may still read the buckets, then the buckets' members of
-- the index. Returns 1, or 0 where nothing was changed: what was read is no longer what there is.
local cursor, index, longer, made, counts, made_images, images = unpack(KEYS, 1, 7)
local next_offset, sealed, goes_on, is_made, start, member, oldest, kept_s, read_s = unpack(ARGV, 1, 9)

local held = redis.call("HMGET", cursor, "next", "sealed", "judged_until")
if not held[1] or less(held[1], next_offset) or tonumber(held[2] or -1) < tonumber(sealed) then return 0 end
-- this node fell back, and counts again what was judged before: in buckets that are closed
if held[3] and less(held[1], held[3]) then return 0 end
if is_made == "1" and redis.call("EXISTS", made) == 0 then return 0 end -- it took too long, and is removed
-- another evaluator was faster
if (redis.call("ZSCORE", longer, member) and "1" or "0") ~= goes_on then return 0 end
for i = 10, #ARGV do
  if not redis.call("ZSCORE", index, ARGV[i]) then return 0 end
end

if is_made == "1" then
  redis.call("RENAME", made, counts)
  redis.call("EXPIRE", counts, kept_s)
  redis.call("ZADD", longer, start, member)
end
if redis.call("EXISTS", made_images) == 1 then
  redis.call("RENAME", made_images, images)
  redis.call("EXPIRE", images, kept_s)
end
redis.call("ZREMRANGEBYSCORE", longer, "-inf", "(" .. oldest)
redis.call("EXPIRE", longer, kept_s)
for i = 10, #ARGV do redis.call("ZREM", index, ARGV[i]) end
for i = 8, #KEYS do redis.call("EXPIRE", KEYS[i], read_s) end
return 1
