-- Chooses a server for each request from a route that lies in shared memory, so that weights change without
-- a reload. Every worker keeps a parsed copy, and looks at each request whether it is still the newest.
--
-- A route is text: "generation N", "token N", "share N" (the candidate's, of 10000), then "POOL HOST PORT WEIGHT
-- RELEASE INSTANCE BACKUP MAX_FAILS FAIL_TIMEOUT" a line; POOL is main, back (where traffic goes while the
-- rollback switch is on), local (main once more, where it is a rollback on the host), preview, and where users are
-- told apart stable and candidate. The configuration holds the route of its own file: after a restart shared
-- memory is empty and that one is served. Whichever has the higher generation counts.
--
-- Shared memory outlives a change of version, a downgrade too. So what a version adds is a pool, which those before
-- it read as well; and a line that is not understood is passed over.

local balancer = require "ngx.balancer"
local ffi = require "ffi"
pcall(ffi.cdef, "int access(const char *path, int mode);") -- another file may have said so

local dict = ngx.shared.release_orchestrator
local LOOK = 0.01 -- seconds between looks for the switch
local REMEMBER = 600 -- seconds that a request which nobody counts is remembered
local module = { routes = {}, switches = {}, down = {}, busy = {} }

-- A route, and the first line of it that is not understood.
local function parse(text)
    local route, wrong = { generation = 0, token = 0, share = 0, pools = {}, servers = {} }, nil
    for line in text:gmatch("[^\n]+") do
        local word, number = line:match("^(%l+) (%d+)$")
        if word == "generation" or word == "token" or word == "share" then
            route[word] = tonumber(number)
        else
            local pool, host, port, weight, release, backup, max_fails, fail_timeout = line:match(
                "^(%l+) (%S+) (%d+) (%d+) (%S+) %S+ ([01]) (%d+) (%d+)$")
            if pool then
                local server = {
                    host = host, port = tonumber(port), address = host .. ":" .. port, weight = tonumber(weight),
                    release = release, backup = backup == "1", max_fails = tonumber(max_fails),
                    fail_timeout = tonumber(fail_timeout), current = 0,
                }
                route.pools[pool] = route.pools[pool] or {}
                table.insert(route.pools[pool], server)
                route.servers[server.address] = server
            else
                wrong = wrong or line
            end
        end
    end
    return route, wrong
end

-- The newest route of a service: from shared memory, or the one that the configuration was loaded with.
local function current(service, loaded)
    local newest = dict:get(service)
    local known = module.routes[service]
    if known and known.newest == newest and known.loaded == loaded then
        return known
    end
    local route = parse(loaded)
    local text = newest and dict:get(service .. " " .. newest)
    if newest and not text then -- replaced between the two looks
        newest = dict:get(service)
        text = dict:get(service .. " " .. newest)
    end
    local other, wrong = parse(text or "")
    if wrong then
        ngx.log(ngx.WARN, "release-orchestrator: ", service, ": line not understood: ", wrong)
    end
    local usable = other.pools.main or not wrong
    if usable and (other.generation > route.generation
            or other.generation == route.generation and other.token > route.token) then
        route = other
    end
    route.newest, route.loaded = text and newest, loaded
    module.routes[service] = route
    return route
end

-- Whether a file is there, by a look that is at most LOOK seconds old.
local function switched(path)
    local seen, now = module.switches[path], ngx.now()
    if not seen or now - seen.at >= LOOK or now < seen.at then
        seen = { at = now, on = ffi.C.access(path, 0) == 0 } -- workers need not be allowed to read it
        module.switches[path] = seen
    end
    return seen.on
end

local function up(server, now)
    local down = module.down[server.address]
    return not down or down.fails < server.max_fails or now >= down["until"]
end

-- Smooth weighted round robin, as nginx' own: exact over the sum of the weights. On the way of every request.
local function first(servers)
    local now, best, total = ngx.now(), nil, 0
    for i = 1, #servers do
        local server = servers[i]
        if not server.backup and up(server, now) then
            local current = server.current + server.weight
            server.current = current
            total = total + server.weight
            if not best or current > best.current then best = server end
        end
    end
    if best then best.current = best.current - total end
    return best
end

-- The release that a header or a cookie names.
local function named(pools, variables)
    for _, variable in ipairs(variables) do
        local word = (ngx.var[variable] or ""):lower()
        for _, side in ipairs(word ~= "" and { "candidate", "stable" } or {}) do
            local servers = pools[side]
            if servers and (word == side or word == servers[1].release) then return servers end
        end
    end
end

-- The release that a user stays with: by a hash of what tells users apart, salted with the candidate's id.
local function stuck(route, variables)
    local candidate, stable = route.pools.candidate, route.pools.stable
    if not candidate or not stable or route.share == 0 then return end
    local key = ""
    for _, variable in ipairs(variables) do key = key .. (ngx.var[variable] or "") end
    if key == "" then return end
    local a, b, c, d = ngx.md5_bin(candidate[1].release .. " " .. key):byte(1, 4)
    local place = ((a * 256 + b) * 256 + c) * 256 + d
    return place < route.share / 10000 * 4294967296 and candidate or stable
end

-- Whom nobody has asked for this request yet: at best one of another release, at worst anybody.
local function other(servers, tried)
    local now, best, rank = ngx.now(), nil, -1
    for _, server in ipairs(servers) do
        local value = (tried[server.address] and 0 or 8) + (up(server, now) and 4 or 0)
            + (server.backup and 0 or 2) + (tried[server.release] and 0 or 1)
        if value > rank then best, rank = server, value end
    end
    return best
end

local function note_failure(server)
    if server.max_fails == 0 then return end
    local now, down = ngx.now(), module.down[server.address]
    if not down or now >= down["until"] then
        down = { fails = 0 }
        module.down[server.address] = down
    end
    down.fails = down.fails + 1
    down["until"] = now + server.fail_timeout
end

-- What could not be kept in shared memory is told: its count is wrong from then on.
local function remember(kept, err)
    if not kept then ngx.log(ngx.ERR, "release-orchestrator: lua_shared_dict release_orchestrator: ", err) end
end

-- Whether this request is counted out when it is over: the snippet sees to that.
local function counted()
    return ngx.var.release_counted == "1"
end

-- Add to a number in shared memory, which never drops something else for it, as `incr` with a first value does.
local function add(key, by)
    local value, err = dict:incr(key, by)
    if err ~= "not found" then return value, err end
    local ok
    ok, err = dict:safe_add(key, 0)
    if not ok and err ~= "exists" then return nil, err end
    return dict:incr(key, by)
end

-- A request begins or ends at a server. What all workers share is how many of them have any there: that changes
-- with a worker's first and last only, so that most requests do not wait for each other.
local function count(service, address, by)
    local key = service .. " @" .. address
    local before = module.busy[key] or 0
    local after = math.max(before + by, 0)
    module.busy[key] = after > 0 and after or nil
    if (before > 0) ~= (after > 0) then remember(add(key, by)) end
end

-- The addresses that have been asked for this request, in order.
local function asked()
    return (ngx.var.upstream_addr or ""):gmatch("[^%s,]+:%d+")
end

-- The next server for a request that has failed at others; and the last of those.
local function retry(route, servers)
    local tried, last = {}, nil
    for address in asked() do
        last = route.servers[address] or { address = address, max_fails = 0 }
        tried[address], tried[last.release or address] = true, true
    end
    if last then note_failure(last) end
    return other(servers, tried), last
end

-- In an upstream: the server of this attempt.
function module.balance(service, pool, loaded, switch, audience)
    local route = current(service, loaded)
    local servers, own = route.pools[pool], nil
    local back = pool == "main" and route.pools.back
    if back and (switched(switch) or switched(switch .. ".to." .. back[1].release)) then
        servers = back
    elseif pool == "main" and audience then
        own = named(route.pools, audience.forced) or stuck(route, audience.sticky)
    end
    if not servers then
        return ngx.exit(ngx.HTTP_BAD_GATEWAY)
    end
    local server, last
    if balancer.get_last_failure() then
        server, last = retry(route, servers)
    else
        server = first(own or servers) or other(servers, {})
        if own or #servers > 1 then
            balancer.set_more_tries(math.min(#servers - (own and 0 or 1), 9))
        end
    end
    if counted() then
        if last then count(service, last.address, -1) end
        count(service, server.address, 1)
    else
        remember(dict:safe_set(service .. " uncounted", true, REMEMBER))
    end
    local ok, err = balancer.set_current_peer(server.host, server.port)
    if not ok then ngx.log(ngx.ERR, "release-orchestrator: ", server.address, ": ", err) end
end

-- In a location, when a request is over.
function module.over(service)
    local last = ngx.var.upstream_addr
    if not last or not last:find(":", 1, true) then return end -- nobody was asked
    if last:find(" ", 1, true) then -- several were; patterns are slow
        for address in asked() do last = address end
    end
    count(service, last, -1)
end

-- Workers with requests under way, for each server that the route does not name any more; -1 when nobody counts.
local function draining(service, route)
    if dict:get(service .. " uncounted") then return -1 end
    local found = 0
    for address in (dict:get(service .. " gone") or ""):gmatch("%S+") do
        if not route.servers[address] then
            found = found + math.max(dict:get(service .. " @" .. address) or 0, 0)
        end
    end
    return found
end

-- The servers that a route ceases to name and that may still have requests; and those that have none any more,
-- since a route before it ceased to name them.
local function gone(service, before, route)
    local found, idle, seen = {}, {}, {}
    for address in (dict:get(service .. " gone") or ""):gmatch("%S+") do
        seen[address] = (dict:get(service .. " @" .. address) or 0) > 0
    end
    for address in pairs(before.servers) do seen[address] = true end
    for address, busy in pairs(seen) do
        if not route.servers[address] then table.insert(busy and found or idle, address) end
    end
    return table.concat(found, " "), idle
end

-- At the private listener: what is served, and where a rollback on the host has all users.
function module.tell(service, loaded, shape)
    local route = current(service, loaded)
    local to = route.pools["local"] and " " .. route.pools["local"][1].release or ""
    ngx.print(service, " ", route.generation, " ", route.token, " dynamic ", shape, " ", draining(service, route), to)
end

-- At the private listener: a newer route. An older generation or token is refused here, in nginx, and so are a
-- rollback on the host and something else under one generation.
function module.take(service, loaded, shape, secret)
    local function refuse(status, text)
        ngx.status = status
        ngx.print(text)
        return ngx.exit(status)
    end
    if ngx.req.get_method() ~= "PUT" or ngx.var.http_x_secret ~= secret then
        return refuse(ngx.HTTP_FORBIDDEN, "not allowed")
    end
    ngx.req.read_body()
    local text = ngx.req.get_body_data()
    if ngx.var.http_x_shape ~= shape then
        return refuse(412, "nginx runs another file")
    end
    local route, wrong = parse(text or "")
    if wrong or route.generation == 0 then
        return refuse(ngx.HTTP_BAD_REQUEST, wrong and "line not understood: " .. wrong or "no route")
    end
    local known = current(service, loaded)
    local other = route.generation == known.generation and not route.pools["local"] ~= not known.pools["local"]
    if route.token < known.token or route.generation < known.generation or other then
        return refuse(ngx.HTTP_CONFLICT, "generation " .. known.generation .. " under token " .. known.token)
    end
    local leaving, idle = gone(service, known, route)
    local last, newest = dict:get(service), nil
    local ok, err = dict:safe_set(service .. " gone", leaving)
    if ok then newest, err = add(service .. " version", 1) end
    ok = newest ~= nil
    if ok then ok, err = dict:safe_set(service .. " " .. newest, text) end
    if ok then ok, err = dict:safe_set(service, newest) end
    if not ok then
        return refuse(ngx.HTTP_INSUFFICIENT_STORAGE, "lua_shared_dict release_orchestrator: " .. err)
    end
    for _, address in ipairs(idle) do dict:delete(service .. " @" .. address) end
    if last then dict:delete(service .. " " .. last) end
    ngx.print("taken")
end

package.loaded.release_orchestrator = module
return module
