-- Positions of channels, and a longer life for what belongs to them.
-- KEYS: three for each channel: metadata, stream, members. ARGV: epoch for a new stream, life of the metadata in ms.
-- Answers the position of each, or '!' and why its keys cannot be read.
local function check(meta, stream, members)
  local epoch, offset = stand(meta, stream, ARGV[1])
  redis.call('PEXPIRE', meta, ARGV[2])
  redis.call('PEXPIRE', members, ARGV[2])
  return epoch .. string.format('%.0f', offset)
end

local answer, begun = {}, false
for i = 1, #KEYS, 3 do
  answer[#answer + 1], begun = attempt(begun, check, KEYS[i], KEYS[i + 1], KEYS[i + 2])
end
return answer
