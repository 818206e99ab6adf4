-- Carries out operations on channels, each as a whole, in their order.
-- KEYS: three for each operation: metadata, stream, and the idempotency key or the members.
-- ARGV: eight for each: kind, pub/sub channel, payload, epoch for a new stream, life of the metadata in ms, and three more:
--   p  publish: publications to keep (0 = this one is not kept), their life in ms, life of the idempotency key (0 = none)
--   s  publish outside of the stream
--   r  remove the publications
--   j  member joined: field, value, life of the members in ms
--   l  member left: field
-- Answers for each the position as epoch and offset, or an empty text for members.
local answer = {}
for i = 0, #KEYS / 3 - 1 do
  local meta, stream, extra = KEYS[i * 3 + 1], KEYS[i * 3 + 2], KEYS[i * 3 + 3]
  local kind, channel, payload = ARGV[i * 8 + 1], ARGV[i * 8 + 2], ARGV[i * 8 + 3]
  local candidate, ttl = ARGV[i * 8 + 4], ARGV[i * 8 + 5]
  local a, b, c = ARGV[i * 8 + 6], ARGV[i * 8 + 7], ARGV[i * 8 + 8]
  local position = ''
  if kind == 'p' then
    local epoch, offset = stand(meta, stream, candidate)
    local earlier = c ~= '0' and redis.call('GET', extra)
    if earlier and string.sub(earlier, 1, 8) == epoch then
      position = earlier
    else
      offset = redis.call('HINCRBY', meta, 'o', 1)
      redis.call('PEXPIRE', meta, ttl)
      position = epoch .. string.format('%.0f', offset)
      if a ~= '0' then
        redis.call('XADD', stream, 'MAXLEN', '=', a, string.format('%.0f-0', offset), 'p', payload)
        redis.call('PEXPIRE', stream, b)
      end
      if c ~= '0' then
        redis.call('SET', extra, position, 'PX', c)
      end
      redis.call(PUBLISH, channel, 'p' .. position .. ':' .. payload)
    end
  elseif kind == 's' then
    local epoch = stand(meta, stream, candidate)
    redis.call('PEXPIRE', meta, ttl)
    position = epoch .. '0'
    redis.call(PUBLISH, channel, 'p' .. position .. ':' .. payload)
  elseif kind == 'r' then
    local epoch, offset = stand(meta, stream, candidate)
    redis.call('PEXPIRE', meta, ttl)
    redis.call('DEL', stream)
    position = epoch .. string.format('%.0f', offset)
    redis.call(PUBLISH, channel, 'r' .. position .. ':')
  elseif kind == 'j' then
    redis.call('HSET', extra, a, b)
    redis.call('PEXPIRE', extra, c)
    redis.call(PUBLISH, channel, payload)
  elseif kind == 'l' then
    redis.call('HDEL', extra, a)
    redis.call(PUBLISH, channel, payload)
  end
  answer[i + 1] = position
end
return answer
