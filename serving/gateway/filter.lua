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

local function refuse(handle, status, message)
  handle:respond(
    {[":status"] = status, ["content-type"] = "application/json"},
    string.format('{ "error": "%s" }', message)
  )
end

function envoy_on_request(handle)
  -- Waiting for the body makes all that was asked of `handle` before it invalid.
  local is_prediction = string.find(handle:headers():get(":path"), ":predict", 1, true) ~= nil
  local body = is_prediction and handle:body()
  local headers, metadata, traffic = handle:headers(), handle:metadata(), {}
  for _, name in ipairs({"stable", "canary", "canary_share", "shadow", "step"}) do traffic[name] = metadata:get(name) end
  if not traffic.canary_share then return end -- not a route to the model
  local notes = handle:streamInfo():dynamicMetadata()
  local claims = (notes:get(SCOPE) or {}).claims or {}
  local override = headers:get("x-cartwheel-arm")
  local served_at = headers:get("x-cartwheel-served-at")
  if (override or served_at) and claims.scope ~= "admin" then
    return refuse(handle, "403", "x-cartwheel-arm and x-cartwheel-served-at need a token with the scope admin")
  end

  local user = headers:get("x-cartwheel-user")
  local users = user and {user} or body and users_of(tostring(body:getBytes(0, body:length()))) or {}
  local path, query = string.match(headers:get(":path"), "^([^?]*)(.*)$")
  local arm, version, target = resolve(path, override or arm_of(users, traffic), traffic)
  if not target then
    return refuse(handle, "404", "no version is " .. arm .. ": deploy one, or ask for another")
  end
  headers:replace(":path", target .. query)
  headers:replace("x-cartwheel-decided", "1")
  headers:remove("authorization")
  if traffic.shadow then headers:replace("x-cartwheel-shadow", string.format("%d", traffic.shadow)) end
  notes:set(OURS, "request", {
    arm = arm, version = tonumber(version), step = traffic.step, client = claims.sub, served_at = served_at, users = users,
    is_prediction = is_prediction, has_fallback = is_prediction and metadata:get("popular") ~= "",
  })
  handle:clearRouteCache()
end

function envoy_on_response(handle)
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
