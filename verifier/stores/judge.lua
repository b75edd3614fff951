#!lua
-- One verification: is the proof new, does the rate allow it, and the event of what came of it. All or nothing.
-- Arguments and answer: verifier/stores/scripts.py. Everything that may fail comes before the first write.
local epoch, mode, now = ARGV[1], ARGV[3], tonumber(ARGV[4])
local ttl, interval, tolerance, floor = tonumber(ARGV[2]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local bound, counts, acts = tonumber(ARGV[9]), ARGV[10] == '1', ARGV[11] == '1'
local written = mode ~= 'hold'

if redis.call('GET', KEYS[1]) ~= epoch then
  return {3, false, 0, 0, false}
end
if written and redis.call('XLEN', KEYS[4]) >= bound then
  return {4, false, 0, 0, false}
end

local code, letter, wait = 0, mode == 'no' and 'v' or 'a', 0
local before, after = false, false
if redis.call('EXISTS', KEYS[2]) == 1 then
  code, letter = 1, 'r'
elseif mode ~= 'no' and interval > 0 then
  local held = redis.call('GET', KEYS[3])
  -- A number that is lost counts as a full one: a new epoch starts without a burst.
  before = held and tonumber(held) or floor > 0 and floor
  after = before
  if acts then
    wait = before and math.max(before - tolerance - now, 0) or 0
    if wait > 0 then
      code, letter = 2, 'l'
    elseif counts then
      after = math.max(before or now, now) + interval
    end
  end
end

local number = 0
if written then
  number = redis.call('INCR', KEYS[5])
  redis.call('XADD', KEYS[4], '*', 'e', epoch, 'n', string.format('%.0f', number), 'o', letter, 'b', ARGV[8])
end
-- Spent whatever follows, but for a proof that was spent already, and a rehearsal.
if ttl > 0 and code ~= 1 then
  redis.call('SET', KEYS[2], '', 'PX', ttl)
end
if after ~= before then
  -- Past its time it means what no number means, so it may go; a second more for clocks that differ.
  local life = math.ceil((after - now) / 1000) + 1000
  redis.call('SET', KEYS[3], string.format('%.0f', after), 'PX', life)
end
return {code, after, wait, number, before}
