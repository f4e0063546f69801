"""The Lua scripts. Each checks everything before its first write, because Redis does not undo a script."""

COMMIT = """
-- KEYS: lease, state, events, requests, services
-- ARGV: token, version, data, service, group, n events, (kind, release, json) * n, entry ids to acknowledge
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('STALE lease') end
local version = tonumber(redis.call('HGET', KEYS[2], 'version') or '0')
if version ~= tonumber(ARGV[2]) then return redis.error_reply('STALE version ' .. version) end
for _, key in ipairs({KEYS[3], KEYS[4]}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'stream' and kind ~= 'none' then return redis.error_reply('WRONGTYPE ' .. key) end
end
local at = 7
for _ = 1, tonumber(ARGV[6]) do
  redis.call('XADD', KEYS[3], '*', 'kind', ARGV[at], 'service', ARGV[4], 'release', ARGV[at + 1],
             'data', ARGV[at + 2])
  at = at + 3
end
redis.call('HSET', KEYS[2], 'data', ARGV[3], 'version', version + 1)
redis.call('SADD', KEYS[5], ARGV[4])
while ARGV[at] do
  redis.call('XACK', KEYS[4], ARGV[5], ARGV[at])
  at = at + 1
end
return version + 1
"""

REFUSE = """
-- KEYS: lease, dead, events, requests
-- ARGV: token, group, entry, kind, service, json, then the fields of the dead letter
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('STALE lease') end
local letter = {}
for i = 7, #ARGV do letter[#letter + 1] = ARGV[i] end
redis.call('XADD', KEYS[2], '*', unpack(letter))
redis.call('XADD', KEYS[3], '*', 'kind', ARGV[4], 'service', ARGV[5], 'release', '', 'data', ARGV[6])
redis.call('XACK', KEYS[4], ARGV[2], ARGV[3])
return 1
"""

ACQUIRE = """
-- KEYS: lease, epoch   ARGV: ttl in ms, floor, token known to be dead ('' for none)
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[3] then return {0, redis.call('PTTL', KEYS[1])} end
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[2])) + 1
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], epoch, 'PX', ARGV[1])
return {epoch, 0}
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
