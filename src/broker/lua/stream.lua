-- Where the stream of a channel stands. Every script begins with this, and with the name of the server's run in RUN.
-- The metadata are a hash: e = epoch, o = newest offset, r = the run under which they were written; t and s are those of
-- write.lua. A stream that was written under another run of the server may have lost its newest part (a restart, a
-- failover), so it begins anew.
-- A server without memory refuses a command that takes some only when it is the first of a script that writes, so such a
-- command comes first everywhere.
local function stand(meta, stream, candidate)
  local known = redis.call('HMGET', meta, 'e', 'o', 'r', 't', 's')
  if known[1] and known[3] == RUN then
    return known[1], tonumber(known[2]), tonumber(known[4] or nil), tonumber(known[5] or 0)
  end
  redis.call('HSET', meta, 'e', candidate, 'o', 0, 'r', RUN, 's', 0)
  redis.call('HDEL', meta, 't')
  redis.call('DEL', stream)
  return candidate, 0, nil, 0
end

-- Calls `work` for one of several channels. What its keys make impossible is answered for it alone, as '!' and the error, and
-- the others go on. An error that speaks of the server ends the script, unless something was done already (`begun`).
local STATES = {'READONLY', 'OOM', 'NOREPLICAS', 'MISCONF', 'NOPERM', 'CLUSTERDOWN', 'MASTERDOWN'}
local function attempt(begun, work, ...)
  local done, answer = pcall(work, ...)
  if done then
    return answer, true
  end
  local said = type(answer) == 'table' and answer.err or tostring(answer)
  for _, state in ipairs(STATES) do
    if not begun and string.find(said, state, 1, true) then
      error(answer, 0)
    end
  end
  return '!' .. said, begun
end
