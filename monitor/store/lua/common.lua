-- Prepended to every script.
--
-- A vector is a string of little-endian u32: bins, then the tail
-- [images, rejected, late, duplicates, changes, longest_run]. Two vectors merge by addition, except the last entry,
-- which merges by maximum. Numbers stay far below 2^32 in one bucket and below 2^53 (exact in Lua) in the totals:
-- a million images a second for 285 years.

local OTHER = "(other)"
local GONE = "(gone)"
local SHADOW = "shadow-" -- as in core/shadow.py
local TAIL = 6

local formats = {}
local function format_of(entries)
  formats[entries] = formats[entries] or ("<" .. string.rep("I4", entries))
  return formats[entries]
end

-- `bucket` is named where they do not fit.
local function merged(old, new, bucket)
  if not old then return new end
  if #old ~= #new then
    error("LAYOUT " .. bucket .. " holds vectors of " .. #old .. " bytes, ours have " .. #new .. " under one fingerprint")
  end
  local entries = #new / 4
  local format = format_of(entries)
  local a, b = {struct.unpack(format, old)}, {struct.unpack(format, new)}
  for i = 1, entries - 1 do a[i] = a[i] + b[i] end
  if b[entries] > a[entries] then a[entries] = b[entries] end
  return struct.pack(format, unpack(a, 1, entries))
end

-- The worst images of a stream in a bucket, packed: {rank, event time, id, p-value} each, the worst first, `most` of them.
local function worst_of(packed, added, most)
  local all = packed and cmsgpack.unpack(packed) or {}
  for _, image in ipairs(added) do all[#all + 1] = image end
  table.sort(all, function(a, b)
    for i = 1, 3 do
      if a[i] ~= b[i] then return a[i] < b[i] end
    end
    return false
  end)
  for i = #all, most + 1, -1 do all[i] = nil end
  return cmsgpack.pack(all)
end

-- images, rejected, late, duplicates, changes
local function tail_of(vector)
  return struct.unpack("<I4I4I4I4I4", vector, #vector - 4 * TAIL + 1)
end

-- The same counts, with every image of them late: late is a share of images, so it is set, not added to.
local function all_late(vector)
  local images = tail_of(vector)
  local late = #vector - 4 * TAIL + 9
  return string.sub(vector, 1, late - 1) .. struct.pack("<I4", images) .. string.sub(vector, late + 4)
end

-- images, rejected, late, duplicates, changes
local function totals_of(packed)
  if not packed then return 0, 0, 0, 0, 0 end
  -- totals written before changes were counted have only four numbers
  return struct.unpack("<I8I8I8I8I8", packed .. string.rep("\0", 40 - #packed))
end

local function totals_plus(packed, images, rejected, late, duplicates, changes)
  local a, b, c, d, e = totals_of(packed)
  return struct.pack("<I8I8I8I8I8", a + images, b + rejected, c + late, d + duplicates, e + changes)
end

-- The reply to a caller whose version is older than the state, nil where it may go on. The first schema had no number.
local function refusal(schema, ours)
  if tonumber(schema or 1) > tonumber(ours) then return redis.error_reply("SCHEMA " .. schema) end
end

-- Offsets are decimal strings, compared by length and then by digits: exact for every 64-bit offset, where a Lua
-- number is exact only to 2^53.
local function less(a, b)
  return #a < #b or (#a == #b and a < b)
end

local function now_ms()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The fields of a cursor that are read together: CURSOR_FIELDS in monitor/store/partitions.py, in the same order.
local function cursor_at(key)
  return redis.call("HMGET", key, "next", "high", "token", "epoch", "generation", "idle", "log_id", "rebuild_until",
    "recent")
end

-- Make the caller the holder of a cursor. Versions without a schema number compare `generation` and `claimed_ms`: the
-- largest number in both keeps them from ever claiming what a later version has written.
local function hold(cursor, generation, token, schema)
  local never = "9007199254740991"
  redis.call("HSET", cursor, "token", token, "epoch", generation, "taken_ms", now_ms(), "schema", schema, "idle", "0",
    "generation", never, "claimed_ms", never)
end

-- Redis must know every key before a script runs. Where the state decides on one, the script asks here before it has
-- written anything; if `undeclared` holds names then, it returns them: Connection.run_many makes the call with them too.
local UNDECLARED = "UNDECLARED"
local declared, undeclared
local function is_declared(key)
  if not declared then
    declared, undeclared = {}, {UNDECLARED}
    for _, name in ipairs(KEYS) do declared[name] = true end
  end
  if declared[key] == nil then
    declared[key] = false
    undeclared[#undeclared + 1] = key
  end
  return declared[key]
end

-- The receivers' groups of the outbox: {name, pending, last-delivered-id, ...} each.
local function groups(outbox)
  local found = {}
  for _, flat in ipairs(redis.call("XINFO", "GROUPS", outbox)) do
    local info = {}
    for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
    found[#found + 1] = info
  end
  return found
end
