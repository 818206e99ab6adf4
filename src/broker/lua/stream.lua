-- Where the stream of a channel stands. Every script begins with this, and with the name of the server's run in RUN.
-- The metadata are a hash: e = epoch, o = newest offset, r = the run under which they were written. A stream that was
-- written under another run of the server may have lost its newest part (a restart, a failover), so it begins anew.
local function stand(meta, stream, candidate, ttl)
  local known = redis.call('HMGET', meta, 'e', 'o', 'r')
  if known[1] and known[3] == RUN then
    redis.call('PEXPIRE', meta, ttl)
    return known[1], tonumber(known[2])
  end
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'e', candidate, 'o', 0, 'r', RUN)
  redis.call('PEXPIRE', meta, ttl)
  return candidate, 0
end
