#!lua
-- Undoes what `hold` took from a rate, as far as no call since would have been judged otherwise: rather too little.
-- Arguments and answer: verifier/stores/scripts.py.
local interval, taken, before, now = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {3, false, 0, 0, false}
end
local held = tonumber(redis.call('GET', KEYS[2]))
if not held then
  return {0, false, 0, 0, false}
end
-- By whole intervals: calls followed one on the other. If not, the rate was idle in between, and time paid it all back.
local moved = held - taken
if moved % interval == 0 then
  local without = math.max(before + moved, now + math.max(moved, 0))
  if without < held then
    redis.call('SET', KEYS[2], string.format('%.0f', without), 'KEEPTTL')
    return {0, without, 0, 0, held}
  end
end
return {0, held, 0, 0, held}
