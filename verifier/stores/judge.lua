#!lua
-- One verification: is the proof new, does the rate allow it, and the event of what came of it. All or nothing.
-- Arguments and answer: verifier/stores/scripts.py. What may fail comes before the first write.
local call, keys, args = redis.call, KEYS, ARGV
local epoch, ttl, mode, now = args[1], tonumber(args[2]), args[3], tonumber(args[4])
local interval, tolerance, floor, bound = tonumber(args[5]), tonumber(args[6]), tonumber(args[7]), tonumber(args[9])
local written = mode ~= 'hold'
-- Of a hold for a call that has a name: that very call may be judged again, and its use is set aside once.
local mine, since, set_aside = not written and args[14] or nil, args[4], nil

local known = call('MGET', keys[1], keys[3])
-- By a clock that ran ahead proofs may be forgotten already, by one that is behind they will be too early.
local clock = call('TIME')
local apart = math.abs(clock[1] * 1000000 + clock[2] - now)
if known[1] ~= epoch or apart > tonumber(args[12]) then
  return {3, false, 0, 0, false}
end
if written and call('XLEN', keys[4]) >= bound then
  return {4, false, 0, 0, false}
end
local number = written and call('INCR', keys[5]) or 0

local code, letter, wait = 0, 'a', 0
local before, after = false, false
-- Spent whatever follows. A rehearsal only looks.
local fresh
if ttl > 0 then
  fresh = call('SET', keys[2], mine and mine .. since or '', 'PX', ttl, 'NX')
else
  fresh = call('EXISTS', keys[2]) == 0
end
if mine and not fresh then
  local first = call('GET', keys[2])
  if string.sub(first, 1, #mine) == mine then
    local was
    since, was, set_aside = string.match(string.sub(first, #mine + 1), '^(%d+) ?(%d*) ?(%d*)$')
    set_aside = tonumber(set_aside)
    if now - since < tonumber(args[15]) then
      fresh, before, after = true, set_aside and tonumber(was) or false, set_aside or false
    elseif now - since < tonumber(args[16]) then
      return {5, false, 0, 0, false}
    end
  end
end
if not fresh then
  code, letter = 1, 'r'
elseif mode == 'no' then
  letter = 'v'
elseif interval > 0 and not set_aside then
  -- What is lost counts as used up, and what is left of an earlier epoch may have grown elsewhere since: a new epoch
  -- starts without a burst.
  local held = tonumber(known[2])
  before = floor > 0 and math.max(held or 0, floor) or held or false
  after = before
  if args[11] == '1' then
    wait = before and math.max(before - tolerance - now, 0) or 0
    if wait > 0 then
      code, letter = 2, 'l'
    elseif args[10] == '1' then
      after = math.max(before or now, now) + interval
      -- Past its time it means what no time means, so it may go; a while later, since clocks differ.
      call('SET', keys[3], after, 'PX', math.ceil((after - now) / 1000) + tonumber(args[13]))
      if mine then
        local noted = string.format('%s %s %.0f', since, before and string.format('%.0f', before) or '', after)
        call('SET', keys[2], mine .. noted, 'KEEPTTL')
      end
    end
  end
end

if written then
  call('XADD', keys[4], '*', 'e', epoch, 'n', number, 'o', letter, 'b', args[8], 'm', args[14])
end
return {code, after, wait, number, before}
