-- Where a channel stands, what it keeps, and who is in it.
-- KEYS: metadata, stream, members. ARGV: epoch for a new stream, life of the metadata in ms, known epoch, known offset,
-- publications wanted (0 = none), "1" when members are wanted.
-- Answers the position, the offset of the oldest publication that is kept (the next one when none is), the number of
-- publications, offset and payload of each that comes after the known position, then field and value of each member.
local epoch, offset = stand(KEYS[1], KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
-- The stream may be a little longer than wanted.
local known = math.max(offset - tonumber(ARGV[5]), 0)
if ARGV[3] == epoch then
  known = math.max(known, tonumber(ARGV[4]))
end
local kept, oldest = {}, string.format('%.0f', offset + 1)
if ARGV[5] ~= '0' then
  kept = redis.call('XRANGE', KEYS[2], string.format('(%.0f-0', known), '+')
  local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if first then
    oldest = string.match(first[1], '^%d+')
  end
end
local answer = {epoch .. string.format('%.0f', offset), oldest, tostring(#kept)}
for _, entry in ipairs(kept) do
  answer[#answer + 1] = string.match(entry[1], '^%d+')
  answer[#answer + 1] = entry[2][2]
end
if ARGV[6] == '1' then
  for _, item in ipairs(redis.call('HGETALL', KEYS[3])) do
    answer[#answer + 1] = item
  end
end
return answer
