"""The Lua scripts. Each checks everything before its first write, because Redis does not undo a script.

Errors begin with a word: STALE, another daemon drives; AWAY, the lease ran out or was lost and nobody has
it; BEHIND, the store has lost commits that this daemon made; LATE, something newer is wanted.
"""

_CHECK_LEASE = """
local holder = redis.call('GET', KEYS[1])
if not holder then return redis.error_reply('AWAY the lease is not there') end
if holder ~= ARGV[1] then return redis.error_reply('STALE lease') end
"""

_CHECK_TYPES = """
local function wrong(kind, ...)
  for _, key in ipairs({...}) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. kind)
    end
  end
end
"""

_ACKNOWLEDGE = """
-- How far that has come outlives the group, as an entry of the last key: Redis takes higher ids only.
local function acknowledge(requests, group, entry)
  redis.call('XACK', requests, group, entry)
  redis.pcall('XADD', KEYS[#KEYS], 'MAXLEN', 1, entry, 'group', group)
end
"""

COMMIT = f"""
{_CHECK_TYPES}
{_ACKNOWLEDGE}
-- KEYS: lease, state, events, requests, services, acknowledged
-- ARGV: token, version, data, service, group, n events, (kind, release, json) * n, entry ids to acknowledge
{_CHECK_LEASE}
local version = tonumber(redis.call('HGET', KEYS[2], 'version') or '0')
if version > tonumber(ARGV[2]) then return redis.error_reply('STALE version ' .. version) end
if version < tonumber(ARGV[2]) then return redis.error_reply('BEHIND version ' .. version) end
local bad = wrong('stream', KEYS[3], KEYS[4], KEYS[6]) or wrong('set', KEYS[5])
if bad then return bad end
local at = 7
for _ = 1, tonumber(ARGV[6]) do
  redis.call('XADD', KEYS[3], '*', 'kind', ARGV[at], 'service', ARGV[4], 'release', ARGV[at + 1],
             'data', ARGV[at + 2])
  at = at + 3
end
redis.call('HSET', KEYS[2], 'data', ARGV[3], 'version', version + 1)
redis.call('SADD', KEYS[5], ARGV[4])
while ARGV[at] do
  acknowledge(KEYS[4], ARGV[5], ARGV[at])
  at = at + 1
end
return version + 1
"""

REFUSE = f"""
-- KEYS: lease, dead, events, requests, acknowledged
-- ARGV: token, group, entry, kind, service, json, then the fields of the dead letter
{_CHECK_TYPES}
{_ACKNOWLEDGE}
{_CHECK_LEASE}
local bad = wrong('stream', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
if bad then return bad end
-- One that is not pending any more was refused before, and the reply was lost.
if #redis.call('XPENDING', KEYS[4], ARGV[2], ARGV[3], ARGV[3], 1) == 0 then return 0 end
local letter = {{}}
for i = 7, #ARGV do letter[#letter + 1] = ARGV[i] end
redis.call('XADD', KEYS[2], '*', unpack(letter))
redis.call('XADD', KEYS[3], '*', 'kind', ARGV[4], 'service', ARGV[5], 'release', '', 'data', ARGV[6])
acknowledge(KEYS[4], ARGV[2], ARGV[3])
return 1
"""

ANSWER = f"""
-- KEYS: lease, events, requests, acknowledged   ARGV: token, group, entry, kind, service, json
{_CHECK_LEASE}
{_ACKNOWLEDGE}
-- Likewise; this also fails before the first write where the requests are no stream.
if #redis.call('XPENDING', KEYS[3], ARGV[2], ARGV[3], ARGV[3], 1) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'kind', ARGV[4], 'service', ARGV[5], 'release', '', 'data', ARGV[6])
acknowledge(KEYS[3], ARGV[2], ARGV[3])
return 1
"""

WANT = f"""
-- KEYS: lease, wanted, its news   ARGV: token, service, text
-- The news only save time: whoever is not told of a change sees it a little later.
{_CHECK_LEASE}
local function order(text)
  local ok, wanted = pcall(cjson.decode, text or '')
  local plan = ok and type(wanted) == 'table' and wanted.plan
  local route = type(plan) == 'table' and plan.route
  if type(route) == 'table' then return wanted.token, tonumber(route.generation) end
end
-- What was sent long ago may arrive only now.
local token, generation = order(redis.call('HGET', KEYS[2], ARGV[2]))
local ours, following = order(ARGV[3])
if generation and following and token == ours and generation > following then
  return redis.error_reply('LATE generation ' .. generation .. ' is wanted')
end
local now = redis.call('TIME')
local before, after = redis.call('HGET', KEYS[2], '') or '0', now[1] .. '.' .. now[2]
local new = redis.call('HSET', KEYS[2], '', after, ARGV[2], ARGV[3])
redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', 100, '*', 'service', ARGV[2], 'before', before, 'after', after)
return new
"""

ACQUIRE = """
-- KEYS: lease, epoch   ARGV: ttl in ms, floor, token known to be dead ('' for none)
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[3] then return {0, redis.call('PTTL', KEYS[1])} end
-- The seconds of the clock keep a token from being given out twice where the epoch was lost.
local now = tonumber(redis.call('TIME')[1])
local last = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[2]), now)
local epoch = string.format('%d', last + 1)
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], epoch, 'PX', ARGV[1])
return {tonumber(epoch), 0}
"""

ACCEPT = f"""
{_CHECK_TYPES}
-- KEYS: requests, receipt, nonce
-- ARGV: fingerprint ('' without a key), ms to keep the receipt, ms to keep the nonce (0 without one),
--       then the fields of the request
local keyed, once = ARGV[1] ~= '', ARGV[3] ~= '0'
local before = once and redis.call('GET', KEYS[3])
if before then return {{'repeated', before}} end
local known = keyed and redis.call('HMGET', KEYS[2], 'fingerprint', 'entry') or {{}}
if known[1] and known[1] ~= ARGV[1] then return {{'conflict', known[2]}} end
local bad = wrong('stream', KEYS[1])
if bad then return bad end
local request = {{}}
for i = 4, #ARGV do request[#request + 1] = ARGV[i] end
local entry = redis.call('XADD', KEYS[1], '*', unpack(request))
if keyed then
  redis.call('HSET', KEYS[2], 'fingerprint', ARGV[1], 'entry', entry)
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
if once then redis.call('SET', KEYS[3], entry, 'PX', ARGV[3]) end
return {{'taken', entry}}
"""

GIVE_OUT = """
-- KEYS: tokens   ARGV: id, name, json
local function usual(name) return (name:lower():gsub('%s+', ' '):gsub('^ ', ''):gsub(' $', '')) end
for _, text in ipairs(redis.call('HVALS', KEYS[1])) do
  local good, name = pcall(function() return cjson.decode(text).token.principal.name end)
  if good and usual(name) == usual(ARGV[2]) then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

RETAKE = """
-- KEYS: lease, epoch   ARGV: token, ttl in ms
if redis.call('GET', KEYS[1]) then return 0 end
if tonumber(redis.call('GET', KEYS[2]) or '0') > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

RENEW = """
-- KEYS: lease   ARGV: token, ttl in ms
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

RELEASE = """
-- KEYS: lease   ARGV: token
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
