#!lua
-- Undoes what `hold` took from a rate, only so far that no later decision would differ; in doubt,
-- too little. Arguments and answer: verifier/stores/lua_scripts.py.
local interval, taken, before, now = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {3, false, 0, 0, false}
end
local held = tonumber(redis.call('GET', KEYS[2]))
if not held then
  return {0, false, 0, 0, false}
end
-- A whole number of intervals: the calls came back to back. Otherwise the rate was idle, and time
-- returned the use.
local moved = held - taken
if moved % interval == 0 then
  local without = math.max(before + moved, now + math.max(moved, 0))
  if without < held then
    redis.call('SET', KEYS[2], string.format('%.0f', without), 'KEEPTTL')
    return {0, without, 0, 0, held}
  end
end
return {0, held, 0, 0, held}
