#!lua
-- The beginning of an epoch in one shard. Asked twice it does nothing, so that one that arrives late harms nothing.
-- Arguments and answer: verifier/stores/scripts.py.
local held, epoch = redis.call('GET', KEYS[1]), ARGV[1]
if held and tonumber(held) > tonumber(epoch) then
  return {3, false, 0, tonumber(held), false}
end
if held ~= epoch then
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[1], epoch)
end
return {0, false, 0, tonumber(epoch), false}
