-- Keep what belongs to one of the worst images of a stream and hour. KEYS: totals, index (ranks by name), pictures, maps.
-- ARGV: stream, name, rank, picture, map ("" for none), images kept, bytes of their pictures kept, ttl s.
-- Returns 1, or 0 where worse images have taken all the room. Keeping again changes nothing.
local totals, index, pictures, maps = unpack(KEYS)
local stream, name, rank, picture, map, most, most_bytes, ttl_s = unpack(ARGV)
-- streams beyond the limit share one name, and have no room of their own
if redis.call("HEXISTS", totals, stream) == 0 then return 0 end
redis.call("ZADD", index, rank, name)
if picture ~= "" then redis.call("HSET", pictures, name, picture) end
if map ~= "" then redis.call("HSET", maps, name, map) end
local left, is_kept = tonumber(most_bytes), 0
for place, kept in ipairs(redis.call("ZRANGE", index, 0, -1)) do
  local size = #(redis.call("HGET", pictures, kept) or "")
  if place > tonumber(most) then
    redis.call("ZREM", index, kept)
    redis.call("HDEL", pictures, kept)
    redis.call("HDEL", maps, kept)
  else
    if kept == name then is_kept = 1 end
    if size > left then redis.call("HDEL", pictures, kept) else left = left - size end
  end
end
for i = 2, 4 do redis.call("EXPIRE", KEYS[i], ttl_s) end
return is_kept
