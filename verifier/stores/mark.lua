#!lua
-- Begins an epoch in one shard. Idempotent, so a call that arrives late does no harm.
-- Arguments and answer: verifier/stores/lua_scripts.py.
local held, epoch = redis.call('GET', KEYS[1]), ARGV[1]
if held and tonumber(held) > tonumber(epoch) then
  return {3, false, 0, tonumber(held), false}
end
if held ~= epoch then
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[1], epoch)
end
return {0, false, 0, tonumber(epoch), false}
