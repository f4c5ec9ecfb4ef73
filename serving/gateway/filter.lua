-- What Envoy cannot be configured to do: know the user in a prediction's body, choose the version that answers,
-- and keep what was shown for the exposure log. Everything it knows of versions comes with the route (`traffic`).

local SCOPE = "envoy.filters.http.jwt_authn"
local OURS = "cartwheel"

-- JSON: Lua has no reader of it. Values become Lua's own, null becomes NULL.

local NULL = {}
local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/"}
local CONSTANTS = {["true"] = true, ["false"] = false, null = NULL}
local MAX_DEPTH = 64

local function utf8(code)
  if code < 0x80 then return string.char(code) end
  local tail, lead = {}, code < 0x800 and 0xC0 or code < 0x10000 and 0xE0 or 0xF0
  local limit = code < 0x800 and 1 or code < 0x10000 and 2 or 3
  for place = limit, 1, -1 do
    tail[place] = string.char(0x80 + code % 64)
    code = math.floor(code / 64)
  end
  return string.char(lead + code) .. table.concat(tail)
end

local function read_string(text, start)
  local parts, from = {}, start
  while true do
    local at = string.find(text, '["\\]', from)
    if not at then error("a string without an end") end
    parts[#parts + 1] = string.sub(text, from, at - 1)
    if string.byte(text, at) == 34 then return table.concat(parts), at + 1 end
    local kind = string.sub(text, at + 1, at + 1)
    if kind == "u" then
      local code = tonumber(string.match(text, "^%x%x%x%x", at + 2) or error("no code point"), 16)
      from = at + 6
      if code >= 0xD800 and code < 0xDC00 then
        local low = tonumber(string.match(text, "^\\u([dD][c-fC-F]%x%x)", from) or error("half a pair"), 16)
        code, from = 0x10000 + (code - 0xD800) * 0x400 + low - 0xDC00, from + 6
      end
      parts[#parts + 1] = utf8(code)
    else
      parts[#parts + 1] = ESCAPES[kind] or error("an unknown escape")
      from = at + 2
    end
  end
end

local function skip(text, from)
  return string.find(text, "[^ \t\r\n]", from) or #text + 1
end

local read_value

local function read_entries(text, from, close, depth, read_entry)
  from = skip(text, from)
  if string.sub(text, from, from) == close then return from + 1 end
  while true do
    from = skip(text, read_entry(skip(text, from), depth))
    local mark = string.sub(text, from, from)
    if mark == close then return from + 1 end
    if mark ~= "," then error("neither a comma nor an end") end
    from = from + 1
  end
end

function read_value(text, from, depth)
  if depth > MAX_DEPTH then error("too deep") end
  local mark = string.sub(text, from, from)
  if mark == '"' then return read_string(text, from + 1) end
  if mark == "{" then
    local object = {}
    return object, read_entries(text, from + 1, "}", depth + 1, function(at)
      if string.sub(text, at, at) ~= '"' then error("no name") end
      local name, value
      name, at = read_string(text, at + 1)
      at = skip(text, at)
      if string.sub(text, at, at) ~= ":" then error("no colon") end
      value, at = read_value(text, skip(text, at + 1), depth + 1)
      object[name] = value
      return at
    end)
  end
  if mark == "[" then
    local list = {}
    return list, read_entries(text, from + 1, "]", depth + 1, function(at)
      local value
      value, at = read_value(text, at, depth + 1)
      list[#list + 1] = value
      return at
    end)
  end
  local word = string.match(text, "^[%w%+%-%.]+", from) or error("no value")
  local value = CONSTANTS[word]
  if value == nil then value = tonumber(word) or error("an unknown word") end
  return value, from + #word
end

function read_json(text)
  local value, after = read_value(text, skip(text, 1), 0)
  if skip(text, after) <= #text then error("more than one value") end
  return value
end

-- The users of a request: of each instance, or of the column; none where the signature takes no user.

function users_of(body)
  local is_json, request = pcall(read_json, body)
  if not is_json or type(request) ~= "table" then return {} end
  local rows = type(request.instances) == "table" and request.instances or nil
  local column = type(request.inputs) == "table" and (request.inputs.user_id or request.inputs) or request.inputs
  if not rows then rows = type(column) == "table" and column or {column} end
  local users = {}
  for place, row in ipairs(rows) do
    local user = type(row) == "table" and row.user_id or row
    if type(user) ~= "string" then return {} end
    users[place] = user
  end
  return users
end

-- Protobuf: Lua has no reader of it either. A message becomes lists of its values, numbers or bytes, by their fields.

local function read_varint(bytes, from)
  local value, scale = 0, 1
  while true do
    local byte = string.byte(bytes, from) or error("a number without an end")
    value, scale, from = value + byte % 128 * scale, scale * 128, from + 1
    if byte < 128 then return value, from end
  end
end

local WIDTHS = {[1] = 8, [5] = 4}

function read_message(bytes)
  local fields, from = {}, 1
  while from <= #bytes do
    local tag, value
    tag, from = read_varint(bytes, from)
    local number, kind = math.floor(tag / 8), tag % 8
    if kind == 0 then
      value, from = read_varint(bytes, from)
    else
      local size = WIDTHS[kind]
      if kind == 2 then size, from = read_varint(bytes, from) end
      if not size or from + size - 1 > #bytes then error("no field, or cut off") end
      value, from = string.sub(bytes, from, from + size - 1), from + size
    end
    fields[number] = fields[number] or {}
    table.insert(fields[number], value)
  end
  return fields
end

-- A message within a message; where it stands several times, its parts count together.

local function read_inner(fields, number)
  return read_message(table.concat(fields[number] or {}))
end

local function read_map(fields, number)
  local map = {}
  for _, entry in ipairs(fields[number] or {}) do
    local pair = read_message(entry)
    map[pair[1] and pair[1][1] or ""] = read_inner(pair, 2)
  end
  return map
end

local function varint(value)
  local bytes = {}
  repeat
    local rest = math.floor(value / 128)
    bytes[#bytes + 1] = string.char(value % 128 + (rest > 0 and 128 or 0))
    value = rest
  until value == 0
  return table.concat(bytes)
end

local function field(number, bytes)
  return varint(number * 8 + 2) .. varint(#bytes) .. bytes
end

-- gRPC sends a message behind five bytes: whether it is compressed, and its size.

function read_frame(body)
  if string.sub(body, 1, 1) ~= "\0" then error("compressed") end
  return string.sub(body, 6)
end

function frame(message)
  local size, bytes = #message, {}
  for place = 4, 1, -1 do
    bytes[place], size = string.char(size % 256), math.floor(size / 256)
  end
  return "\0" .. table.concat(bytes) .. message
end

-- What of a request by gRPC the filter needs: the model it asks for, a version or label of it, and a prediction's users.

function read_request(message, is_prediction)
  local fields = read_message(message)
  local spec = read_inner(fields, 1)
  local user_ids = is_prediction and read_map(fields, 2).user_id or {}
  local function last(number) return spec[number] and spec[number][#spec[number]] end
  return {
    model = last(1), label = last(4), users = user_ids[8] or {},
    version = spec[2] and (read_inner(spec, 2)[1] or {0})[1],
  }
end

-- The version that a request by gRPC is answered by, and what to add to it for that: what comes later counts.

function resolve_message(request, arm, traffic)
  local label = request.label
  if request.version or (label and label ~= "stable" and label ~= "canary") then
    return "pinned", request.version, ""
  end
  arm = label or arm
  local version = traffic[arm]
  return arm, version, version and field(1, field(2, varint(8) .. varint(version)))
end

local function read_float(bytes, from)
  local a, b, c, d = string.byte(bytes, from, from + 3)
  local exponent, fraction = d % 128 * 2 + math.floor(c / 128), c % 128 * 65536 + b * 256 + a
  if exponent == 255 then return "null" end
  local value = exponent == 0 and math.ldexp(fraction, -149) or math.ldexp(fraction + 0x800000, exponent - 150)
  return string.format("%.9g", d < 128 and value or -value)
end

local function json_string(text)
  return '"' .. string.gsub(text, '[%c"\\]', function(char) return string.format("\\u%04x", string.byte(char)) end) .. '"'
end

-- Items and scores of an answer by gRPC, as REST has them in columns; nil where it has no items.

function shown_by(message)
  local outputs = read_map(read_message(message), 1)
  local items = outputs.items and outputs.items[8]
  if not items then return nil end
  local floats = table.concat(outputs.scores and (outputs.scores[5] or outputs.scores[4]) or {})
  local size = read_message(read_inner(outputs.items, 2)[2][1])[1][1]
  local shown, scores = {}, {}
  for row = 1, size do
    local texts, numbers = {}, {}
    for place = (row - 1) * #items / size + 1, row * #items / size do
      texts[#texts + 1] = json_string(items[place])
      if #floats == 4 * #items then numbers[#numbers + 1] = read_float(floats, 4 * place - 3) end
    end
    shown[row], scores[row] = "[" .. table.concat(texts, ", ") .. "]", "[" .. table.concat(numbers, ", ") .. "]"
  end
  return string.format(
    '{"outputs": {"items": [%s], "scores": [%s]}}', table.concat(shown, ", "), table.concat(scores, ", ")
  )
end

-- A number from 0 to 1 for a text: FNV-1a of 32 bits, finished as murmur3 does. Lua's numbers hold 53 bits exactly,
-- so products are made of halves.

local function multiply(left, right)
  local high = bit.rshift(left, 16) * right
  local low = bit.band(left, 0xFFFF) * right
  return bit.tobit(bit.lshift(bit.tobit(high % 0x100000000), 16) + low % 0x100000000)
end

function fraction_of(text)
  local hash = bit.tobit(2166136261)
  for place = 1, #text do hash = multiply(bit.bxor(hash, string.byte(text, place)), 16777619) end
  hash = multiply(bit.bxor(hash, bit.rshift(hash, 16)), 0x85EBCA6B)
  hash = multiply(bit.bxor(hash, bit.rshift(hash, 13)), 0xC2B2AE35)
  return bit.bxor(hash, bit.rshift(hash, 16)) % 0x100000000 / 0x100000000
end

-- Which arm answers: of one user the one that the hash says, of several stable, as they would not agree.

function arm_of(users, traffic)
  if traffic.canary and #users == 1 and fraction_of(traffic.canary .. ":" .. users[1]) < traffic.canary_share then
    return "canary"
  end
  return "stable"
end

-- The version that a path names, and the path that names one.

function resolve(path, arm, traffic)
  local model, verb = string.match(path, "^(/v1/models/[^/:]+)(:%w+)$")
  if not model then model, verb = string.match(path, "^(/v1/models/[^/:]+)(/metadata)$") end
  if not model then
    local label
    model, label, verb = string.match(path, "^(/v1/models/[^/:]+)/labels/([^/:]+)(.*)$")
    if label ~= "stable" and label ~= "canary" then
      return "pinned", string.match(path, "/versions/(%d+)"), path
    end
    arm = label
  end
  local version = traffic[arm]
  return arm, version, version and string.format("%s/versions/%s%s", model, version, verb)
end

-- Statuses of gRPC as HTTP has them, for the measures; any other is 500.

local GRPC_STATUSES = {
  ["0"] = 200, ["3"] = 400, ["4"] = 504, ["5"] = 404, ["7"] = 403, ["8"] = 429, ["12"] = 501, ["14"] = 503, ["16"] = 401,
}
local OF_HTTP = {["400"] = "3", ["403"] = "7", ["404"] = "5", ["501"] = "12"}
local RPC = "/tensorflow.serving."

local function refuse(handle, is_grpc, status, message)
  local headers = {[":status"] = status, ["content-type"] = "application/json"}
  if not is_grpc then return handle:respond(headers, string.format('{ "error": "%s" }', message)) end
  headers["grpc-status"] = OF_HTTP[status]
  handle:respond(headers, message)
end

function envoy_on_request(handle)
  -- Waiting for the body makes all that was asked of `handle` before it invalid.
  local full_path = handle:headers():get(":path")
  local is_grpc = string.sub(full_path, 1, #RPC) == RPC
  local is_prediction = string.find(full_path, ":predict", 1, true) ~= nil or full_path == RPC .. "PredictionService/Predict"
  local body = (is_grpc or is_prediction) and handle:body()
  local headers, metadata, traffic = handle:headers(), handle:metadata(), {}
  for _, name in ipairs({"stable", "canary", "canary_share", "shadow", "step"}) do traffic[name] = metadata:get(name) end
  if not traffic.canary_share then return end -- not a route to the model
  local notes = handle:streamInfo():dynamicMetadata()
  local claims = (notes:get(SCOPE) or {}).claims or {}
  local override = headers:get("x-cartwheel-arm")
  local served_at = headers:get("x-cartwheel-served-at")
  if (override or served_at) and claims.scope ~= "admin" then
    return refuse(handle, is_grpc, "403", "x-cartwheel-arm and x-cartwheel-served-at need a token with the scope admin")
  end

  local user, bytes = headers:get("x-cartwheel-user"), body and tostring(body:getBytes(0, body:length())) or ""
  local users, arm, version, target
  if is_grpc then
    local is_read, message = pcall(read_frame, bytes)
    if not is_read then return refuse(handle, is_grpc, "501", "the gateway takes no compressed messages") end
    local request
    is_read, request = pcall(read_request, message, is_prediction)
    if not is_read then return refuse(handle, is_grpc, "400", "no message of TensorFlow Serving") end
    if request.model ~= MODEL then return refuse(handle, is_grpc, "404", "the gateway serves the model " .. MODEL) end
    users = user and {user} or request.users
    if full_path == RPC .. "ModelService/GetModelStatus" then -- of all versions, as by REST
      arm, version, target = "pinned", request.version, ""
    else
      arm, version, target = resolve_message(request, override or arm_of(users, traffic), traffic)
    end
    if target then
      body:setBytes(frame(message .. target))
      headers:remove("content-length")
    end
  else
    users = user and {user} or body and users_of(bytes) or {}
    local path, query = string.match(full_path, "^([^?]*)(.*)$")
    arm, version, target = resolve(path, override or arm_of(users, traffic), traffic)
    if target then headers:replace(":path", target .. query) end
  end
  if not target then
    return refuse(handle, is_grpc, "404", "no version is " .. arm .. ": deploy one, or ask for another")
  end
  headers:replace("x-cartwheel-decided", "1")
  headers:remove("authorization")
  if traffic.shadow then headers:replace("x-cartwheel-shadow", string.format("%d", traffic.shadow)) end
  notes:set(OURS, "request", {
    arm = arm, version = tonumber(version), step = traffic.step, client = claims.sub, served_at = served_at, users = users,
    is_prediction = is_prediction, is_grpc = is_grpc,
    has_fallback = is_prediction and not is_grpc and metadata:get("popular") ~= "",
  })
  handle:clearRouteCache()
end

local function on_grpc_response(handle)
  local body = handle:body()
  local message = body and tostring(body:getBytes(0, body:length())) or ""
  local trailers, notes = handle:trailers(), handle:streamInfo():dynamicMetadata()
  local status = handle:headers():get("grpc-status") or trailers and trailers:get("grpc-status")
  local request = notes:get(OURS).request
  local is_read, shown = pcall(function() return status == "0" and shown_by(read_frame(message)) end)
  request.status = GRPC_STATUSES[status] or 500
  request.is_prediction = request.is_prediction and is_read and shown and true or false
  notes:set(OURS, "request", request)
  if request.is_prediction then notes:set(OURS, "response", shown) end
end

function envoy_on_response(handle)
  local request = (handle:streamInfo():dynamicMetadata():get(OURS) or {}).request
  if request and request.is_grpc then return on_grpc_response(handle) end
  local body = handle:headers():get(":status") == "200" and handle:body()
  if not body then return end
  local headers, notes = handle:headers(), handle:streamInfo():dynamicMetadata()
  if headers:get("x-cartwheel-fallback") then
    local popular, lists = handle:metadata():get("popular"), {}
    for place = 1, math.max(1, #(notes:get(OURS).request.users or {})) do lists[place] = popular end
    headers:replace("content-type", "application/json")
    headers:remove("x-cartwheel-arm")
    headers:remove("x-cartwheel-model-version")
    body:setBytes(string.format('{"predictions": [%s]}', table.concat(lists, ", ")))
  end
  notes:set(OURS, "response", tostring(body:getBytes(0, body:length())))
end
