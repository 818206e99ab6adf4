-- The name of the server's run that all nodes agree on. It is the same again after the key was lost, unless the server had
-- come and gone in between.
-- KEYS: hash. ARGV: name of the server's process.
if redis.call('HGET', KEYS[1], 'server') ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'server', ARGV[1])
  redis.call('HINCRBY', KEYS[1], 'count', 1)
end
return ARGV[1] .. '-' .. redis.call('HGET', KEYS[1], 'count')
