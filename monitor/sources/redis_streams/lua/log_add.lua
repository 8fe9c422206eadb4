-- Append one record. KEYS: log, next position. ARGV: bound, then the entry's fields. Returns the record's position.
-- Entry ids are position + 1, because Redis refuses 0-0. The entry goes first: if the server refuses it for want of memory, there
-- is no hole in the positions, and a hole means records that were trimmed before they were read.
local position = tonumber(redis.call("GET", KEYS[2]) or "0")
redis.call("XADD", KEYS[1], "MAXLEN", "~", ARGV[1], string.format("%.0f-0", position + 1), unpack(ARGV, 2))
redis.call("SET", KEYS[2], string.format("%.0f", position + 1))
return position
