-- The name of the server's run that all nodes agree on.
-- KEYS: hash. ARGV: identity of the server, name for a run that nobody has named yet.
if redis.call('HGET', KEYS[1], 'server') ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'server', ARGV[1], 'run', ARGV[2])
end
return redis.call('HGET', KEYS[1], 'run')
