-- A sign that the owner of a partition is at work. KEYS: cursor. ARGV: token. Returns the cursor, whoever holds it.
if redis.call("HGET", KEYS[1], "token") == ARGV[1] then redis.call("HINCRBY", KEYS[1], "beats", 1) end
return cursor_at(KEYS[1])
