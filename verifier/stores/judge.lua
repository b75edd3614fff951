#!lua
-- One verification: is the proof new, does the rate allow it, and the event of what came of it. All or nothing.
-- Arguments and answer: verifier/stores/scripts.py. What may fail comes before the first write.
local call, keys, args = redis.call, KEYS, ARGV
local epoch, ttl, mode, now = args[1], tonumber(args[2]), args[3], tonumber(args[4])
local interval, tolerance, floor, bound = tonumber(args[5]), tonumber(args[6]), tonumber(args[7]), tonumber(args[9])
local written = mode ~= 'hold'
-- Of a call that has a name.
local mine = args[14] ~= '' and args[14] or nil

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
-- The very same call again: it has its answer again, or, of a hold, it is judged again with the use that was set aside.
local before, after, set_aside, since, again = false, false, nil, args[4], false
local first = mine and call('GET', keys[2])
if first and string.sub(first, 1, #mine) == mine then
  local kept = string.sub(first, #mine + 1)
  local told = string.match(kept, '^=(.*)$')
  if told then
    -- A token that has ended since is refused, where the answer was a yes.
    again = args[17] == '1' and string.sub(told, 1, 1) == 'a'
    if not again then
      return {6, false, 0, 0, false, told}
    end
  elseif written then
    -- The token has ended since: before that the call was the database's.
    return {7, false, 0, 0, false}
  else
    local was
    since, was, set_aside = string.match(kept, '^(%d+) ?(%d*) ?(%d*)$')
    set_aside = tonumber(set_aside)
    if now - since < tonumber(args[15]) then
      again, before, after = true, set_aside and tonumber(was) or false, set_aside or false
    elseif now - since < tonumber(args[16]) then
      return {5, false, 0, 0, false}
    end
  end
end
local number = written and call('INCR', keys[5]) or 0

local code, letter, wait = 0, 'a', 0
-- Spent whatever follows. A rehearsal only looks.
local fresh
if ttl > 0 then
  fresh = call('SET', keys[2], mine and mine .. since or '', 'PX', ttl, 'NX') or again
else
  fresh = call('EXISTS', keys[2]) == 0
end
if not fresh then
  code, letter = 1, 'r'
elseif mode == 'no' then
  letter = 'v'
elseif interval > 0 and not set_aside then
  -- What is lost counts as used up, and what is left of an earlier epoch may have grown elsewhere since: a new epoch
  -- starts without a burst.
  local held = tonumber(known[2])
  -- No time of ours is as late, or is no number.
  if held and not (held < 2^53) then
    held = nil
  end
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
      if mine and not written then
        local noted = string.format('%s %s %.0f', since, before and string.format('%.0f', before) or '', after)
        call('SET', keys[2], mine .. noted, 'KEEPTTL')
      end
    end
  end
end

if written then
  call('XADD', keys[4], '*', 'e', epoch, 'n', number, 'o', letter, 'b', args[8], 'm', args[15])
  if mine and fresh and not again and ttl > 0 then
    local kept = string.format('=%s%s %s %.0f ', letter, since, after and string.format('%.0f', after) or '', wait)
    call('SET', keys[2], mine .. kept .. args[16], 'KEEPTTL')
  end
end
return {code, after, wait, number, before}
