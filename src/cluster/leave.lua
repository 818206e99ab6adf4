-- Ends the lease of a node that stops in good order.
-- KEYS: leases, nodes. ARGV: node.
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('HDEL', KEYS[2], ARGV[1])
