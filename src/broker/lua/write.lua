-- Carries out operations on channels, each as a whole or not at all, in their order. One that the keys of its channel make
-- impossible does not hold up the others: what may fail because of keys comes first, before anything is written.
-- ARGV: epoch for a new stream, life of the metadata and of members in ms, Unix time in ms, then for each operation its kind,
-- its payload, and what that kind needs. KEYS: metadata and stream of each, and what that kind needs.
--   p  publish: publications to keep (0 = this one is not kept), their life in ms, life of the idempotency key (0 = none);
--      key: the idempotency key, when there is one
--   s  publish outside of the stream
--   r  remove the publications
--   t  tell what the payload says, of a stream that is kept somewhere else
--   j  member joined: field, value; key: the members
--   l  member left: field; key: the members
--   f  a node is gone: first part of its members' fields; key: the members. It is told when there were some: the node may be
--      back already and have told them, before a call that was late
-- Answers for each the position as epoch and offset, with '=' before it when the idempotency key had it already, or an empty
-- text for members, or '!' and why it was not carried out.
-- The metadata also remember when their life (t) and that of the stream (s) were prolonged, because doing it with every
-- publication costs as much as the publication.
local candidate, ttl, now = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function prolong_meta(meta, last)
  if not last or math.abs(now - last) * 8 > tonumber(ttl) then
    redis.call('HSET', meta, 't', ARGV[3])
    redis.call('PEXPIRE', meta, ttl)
  end
end

-- Each is called with the keys that all have, the pub/sub channel, the payload, and where its own arguments and keys begin.
local carry_out = {}

function carry_out.p(meta, stream, channel, payload, at, key)
  local size, life, key_life = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local epoch, last, prolonged, stream_prolonged = stand(meta, stream, candidate)
  local offset = string.format('%.0f', last + 1)
  local position = epoch .. offset
  if key_life ~= '0' then
    local earlier = redis.call('GET', KEYS[key])
    if earlier and string.sub(earlier, 1, 8) == epoch then
      return '=' .. earlier
    end
  end
  if size ~= '0' then
    redis.call('XADD', stream, 'MAXLEN', '~', size, offset .. '-0', 'p', payload)
  end
  redis.call('HSET', meta, 'o', offset)
  prolong_meta(meta, prolonged)
  if size ~= '0' and math.abs(now - stream_prolonged) * 4 > tonumber(life) then
    redis.call('HSET', meta, 's', ARGV[3])
    -- Nothing is forgotten before its time is over; whoever reads leaves out what is too old.
    redis.call('PEXPIRE', stream, string.format('%.0f', life * 1.25))
  end
  if key_life ~= '0' then
    redis.call('SET', KEYS[key], position, 'PX', key_life)
  end
  redis.call(PUBLISH, channel, 'p' .. position .. ':' .. payload)
  return position
end

function carry_out.s(meta, stream, channel, payload)
  local epoch, _, prolonged = stand(meta, stream, candidate)
  prolong_meta(meta, prolonged)
  local position = epoch .. '0'
  redis.call(PUBLISH, channel, 'p' .. position .. ':' .. payload)
  return position
end

function carry_out.r(meta, stream, channel)
  local epoch, offset = stand(meta, stream, candidate)
  local position = epoch .. string.format('%.0f', offset)
  -- The next stream has no life yet.
  redis.call('HSET', meta, 's', 0)
  redis.call('DEL', stream)
  redis.call(PUBLISH, channel, 'r' .. position .. ':')
  return position
end

function carry_out.t(_, _, channel, payload)
  redis.call(PUBLISH, channel, payload)
  return ''
end

function carry_out.j(_, _, channel, payload, at, key)
  redis.call('HSET', KEYS[key], ARGV[at], ARGV[at + 1])
  redis.call('PEXPIRE', KEYS[key], ttl)
  redis.call(PUBLISH, channel, payload)
  return ''
end

function carry_out.l(_, _, channel, payload, at, key)
  redis.call('HDEL', KEYS[key], ARGV[at])
  redis.call(PUBLISH, channel, payload)
  return ''
end

function carry_out.f(_, _, channel, payload, at, key)
  local found = false
  for _, field in ipairs(redis.call('HKEYS', KEYS[key])) do
    if string.sub(field, 1, #ARGV[at]) == ARGV[at] then
      redis.call('HDEL', KEYS[key], field)
      found = true
    end
  end
  if found then
    redis.call(PUBLISH, channel, payload)
  end
  return ''
end

local arguments = {p = 3, s = 0, r = 0, t = 0, j = 2, l = 1, f = 1}
local answer, begun = {}, false
local at, key = 4, 1
while at < #ARGV do
  local kind, payload = ARGV[at], ARGV[at + 1]
  local has_key = kind == 'j' or kind == 'l' or kind == 'f' or (kind == 'p' and ARGV[at + 4] ~= '0')
  local meta, stream = KEYS[key], KEYS[key + 1]
  local channel = string.sub(meta, 1, -6)
  answer[#answer + 1], begun =
    attempt(begun, carry_out[kind], meta, stream, channel, payload, at + 2, key + 2)
  at, key = at + 2 + arguments[kind], key + (has_key and 3 or 2)
end
return answer
