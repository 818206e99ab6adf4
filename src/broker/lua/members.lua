-- Replaces all members that one node has in a channel.
-- KEYS: members. ARGV: pub/sub channel, payload, first part of the node's fields, life in ms, then field and value of each.
local first = ARGV[3]
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, #first) == first then
    redis.call('HDEL', KEYS[1], field)
  end
end
for i = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call(PUBLISH, ARGV[1], ARGV[2])
return ''
