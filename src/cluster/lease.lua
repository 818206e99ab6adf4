-- Renews the lease of a node, ends leases that have run out, and answers all nodes, in one step.
-- KEYS: leases (sorted set: node -> end of its lease in ms), nodes (hash: node -> JSON).
-- ARGV: node, length of the lease in ms, JSON, "held" when the node believes that it has a lease, otherwise "new".
-- Answers "lost" or "kept", the number of nodes whose lease was ended here, these, then node and JSON of every other.
-- Times are those of Redis, so the clocks of the nodes do not matter.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
for _, node in ipairs(ended) do
  redis.call('ZREM', KEYS[1], node)
  redis.call('HDEL', KEYS[2], node)
end
local answer = {'kept', #ended}
for _, node in ipairs(ended) do
  answer[#answer + 1] = node
end
if ARGV[4] == 'held' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  answer[1] = 'lost'
else
  redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
end
for _, item in ipairs(redis.call('HGETALL', KEYS[2])) do
  answer[#answer + 1] = item
end
return answer
