-- Keeps a revocation, forgets those that are over, and answers all.
-- KEYS: sorted set: revocation as JSON -> Unix time until which it is kept. ARGV: now, then optionally that time and the JSON.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if ARGV[3] then
  redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[3])
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
