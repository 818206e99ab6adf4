-- Carries out operations on channels, each as a whole, in their order.
-- ARGV: epoch for a new stream, life of the metadata and of members in ms, Unix time in ms, then for each operation its kind,
-- its payload, and what that kind needs. KEYS: metadata and stream of each, and what that kind needs.
--   p  publish: publications to keep (0 = this one is not kept), their life in ms, life of the idempotency key (0 = none);
--      key: the idempotency key, when there is one
--   s  publish outside of the stream
--   r  remove the publications
--   t  tell what the payload says, of a stream that is kept somewhere else
--   j  member joined: field, value; key: the members
--   l  member left: field; key: the members
--   f  a node is gone: first part of its members' fields; key: the members
-- Answers for each the position as epoch and offset, with '=' before it when the idempotency key had it already, or an empty
-- text for members.
-- The metadata also remember when their life (t) and that of the stream (s) were prolonged, because doing it with every
-- publication costs as much as the publication.
local candidate, ttl, now = ARGV[1], ARGV[2], tonumber(ARGV[3])
local answer = {}
local at, key = 4, 1

local function prolong_meta(meta, last)
  if not last or math.abs(now - last) * 8 > tonumber(ttl) then
    redis.call('HSET', meta, 't', ARGV[3])
    redis.call('PEXPIRE', meta, ttl)
  end
end

local function publish(meta, stream, channel, payload)
  local size, life, key_life = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  at = at + 3
  local epoch, _, prolonged, stream_prolonged = stand(meta, stream, candidate)
  if key_life ~= '0' then
    key = key + 1
    local earlier = redis.call('GET', KEYS[key - 1])
    if earlier and string.sub(earlier, 1, 8) == epoch then
      return '=' .. earlier
    end
  end
  local offset = string.format('%.0f', redis.call('HINCRBY', meta, 'o', 1))
  local position = epoch .. offset
  prolong_meta(meta, prolonged)
  if size ~= '0' then
    redis.call('XADD', stream, 'MAXLEN', '~', size, offset .. '-0', 'p', payload)
    if math.abs(now - stream_prolonged) * 4 > tonumber(life) then
      redis.call('HSET', meta, 's', ARGV[3])
      -- Nothing is forgotten before its time is over; whoever reads leaves out what is too old.
      redis.call('PEXPIRE', stream, string.format('%.0f', life * 1.25))
    end
  end
  if key_life ~= '0' then
    redis.call('SET', KEYS[key - 1], position, 'PX', key_life)
  end
  redis.call(PUBLISH, channel, 'p' .. position .. ':' .. payload)
  return position
end

while at < #ARGV do
  local kind, payload = ARGV[at], ARGV[at + 1]
  local meta, stream = KEYS[key], KEYS[key + 1]
  local channel = string.sub(meta, 1, -6)
  local position = ''
  at, key = at + 2, key + 2
  if kind == 'p' then
    position = publish(meta, stream, channel, payload)
  elseif kind == 's' then
    local epoch, _, prolonged = stand(meta, stream, candidate)
    prolong_meta(meta, prolonged)
    position = epoch .. '0'
    redis.call(PUBLISH, channel, 'p' .. position .. ':' .. payload)
  elseif kind == 'r' then
    local epoch, offset = stand(meta, stream, candidate)
    -- The next stream has no life yet.
    redis.call('HSET', meta, 's', 0)
    redis.call('DEL', stream)
    position = epoch .. string.format('%.0f', offset)
    redis.call(PUBLISH, channel, 'r' .. position .. ':')
  elseif kind == 't' then
    redis.call(PUBLISH, channel, payload)
  elseif kind == 'j' then
    redis.call('HSET', KEYS[key], ARGV[at], ARGV[at + 1])
    redis.call('PEXPIRE', KEYS[key], ttl)
    redis.call(PUBLISH, channel, payload)
    at, key = at + 2, key + 1
  elseif kind == 'l' then
    redis.call('HDEL', KEYS[key], ARGV[at])
    redis.call(PUBLISH, channel, payload)
    at, key = at + 1, key + 1
  elseif kind == 'f' then
    for _, field in ipairs(redis.call('HKEYS', KEYS[key])) do
      if string.sub(field, 1, #ARGV[at]) == ARGV[at] then
        redis.call('HDEL', KEYS[key], field)
      end
    end
    at, key = at + 1, key + 1
  end
  answer[#answer + 1] = position
end
return answer
