-- Look for the first record at or after a time, a bounded piece at a call. KEYS: log. ARGV: first position, time in ms,
-- entries to look at. Returns {found or next position, 1 found | 0 look on there | -1 none}.
local entries = redis.call("XRANGE", KEYS[1], string.format("%.0f-0", ARGV[1] + 1), "+", "COUNT", ARGV[3])
local position = tonumber(ARGV[1])
for _, entry in ipairs(entries) do
  position = tonumber(string.match(entry[1], "^%d+")) - 1
  for i = 1, #entry[2], 2 do
    if entry[2][i] == "t" and tonumber(entry[2][i + 1]) >= tonumber(ARGV[2]) then return {position, 1} end
  end
end
return {position + 1, #entries < tonumber(ARGV[3]) and -1 or 0}
