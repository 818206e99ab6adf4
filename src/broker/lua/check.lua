-- Positions of channels, and a longer life for what belongs to them.
-- KEYS: three for each channel: metadata, stream, members. ARGV: epoch for a new stream, life of the metadata in ms.
local answer = {}
for i = 1, #KEYS, 3 do
  local epoch, offset = stand(KEYS[i], KEYS[i + 1], ARGV[1])
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
  redis.call('PEXPIRE', KEYS[i + 2], ARGV[2])
  answer[#answer + 1] = epoch .. string.format('%.0f', offset)
end
return answer
