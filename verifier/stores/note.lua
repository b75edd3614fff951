#!lua
-- Writes the event of a refusal that needs nothing else written.
-- Arguments and answer: verifier/stores/lua_scripts.py.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {3, false, 0, 0, false}
end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[3]) then
  return {4, false, 0, 0, false}
end
local number = redis.call('INCR', KEYS[3])
redis.call('XADD', KEYS[2], '*', 'e', ARGV[1], 'n', string.format('%.0f', number), 'o', 'v', 'b', ARGV[2],
  'm', ARGV[4], unpack(ARGV, 5))
return {0, false, 0, number, false}
