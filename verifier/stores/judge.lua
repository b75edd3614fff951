#!lua
-- One verification: checks the proof and the rate, and writes the event of the outcome. All or
-- nothing. Arguments and answer: verifier/stores/lua_scripts.py. Everything that can fail comes before
-- the first write.
local call, keys, args = redis.call, KEYS, ARGV
local epoch, ttl, mode, now = args[1], tonumber(args[2]), args[3], tonumber(args[4])
local interval, tolerance, floor, bound = tonumber(args[5]), tonumber(args[6]), tonumber(args[7]), tonumber(args[9])
local written = mode ~= 'hold'
-- The mark of a call with an Idempotency-Key.
local mine = args[14] ~= '' and args[14] or nil

local known = call('MGET', keys[1], keys[3])
-- If this clock ran ahead, proofs may have expired already; if it is behind, they will expire too
-- early.
local clock = call('TIME')
local apart = math.abs(clock[1] * 1000000 + clock[2] - now)
if known[1] ~= epoch or apart > tonumber(args[12]) then
  return {3, false, 0, 0, false}
end
if written and call('XLEN', keys[4]) >= bound then
  return {4, false, 0, 0, false}
end
-- The same call again: it gets its kept answer; a hold is judged again with the use it reserved.
local before, after, reserved, since, again = false, false, nil, args[4], false
local first = mine and call('GET', keys[2])
if first and string.sub(first, 1, #mine) == mine then
  local kept = string.sub(first, #mine + 1)
  local told = string.match(kept, '^=(.*)$')
  if told then
    -- A kept yes is not repeated once its token has ended.
    again = args[17] == '1' and string.sub(told, 1, 1) == 'a'
    if not again then
      return {6, false, 0, 0, false, told}
    end
  elseif written then
    -- While the token was good the database decided this call, so its answer is there.
    return {7, false, 0, 0, false}
  else
    local was
    since, was, reserved = string.match(kept, '^(%d+) ?(%d*) ?(%d*)$')
    reserved = tonumber(reserved)
    if now - since < tonumber(args[15]) then
      again, before, after = true, reserved and tonumber(was) or false, reserved or false
    elseif now - since < tonumber(args[16]) then
      return {5, false, 0, 0, false}
    end
  end
end
local number = written and call('INCR', keys[5]) or 0

local code, letter, wait = 0, 'a', 0
-- The proof is spent whatever follows. A dry run only looks.
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
elseif interval > 0 and not reserved then
  -- A lost rate counts as used up, and one from an earlier epoch may have been used elsewhere
  -- since: so a new epoch starts without a burst.
  local held = tonumber(known[2])
  -- Not a number, or later than any time we write.
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
      -- After this time the key means the same as no key, so it may expire; EARLY_MS later, since
      -- clocks differ.
      call('SET', keys[3], after, 'PX', math.ceil((after - now) / 1000) + tonumber(args[13]))
      if mine and not written then
        local noted = string.format('%s %s %.0f', since, before and string.format('%.0f', before) or '', after)
        call('SET', keys[2], mine .. noted, 'KEEPTTL')
      end
    end
  end
end

if written then
  call('XADD', keys[4], '*', 'e', epoch, 'n', number, 'o', letter, 'b', args[8], 'm', args[15],
    unpack(args, 18))
  if mine and fresh and not again and ttl > 0 then
    local kept = string.format('=%s%s %s %.0f ', letter, since, after and string.format('%.0f', after) or '', wait)
    call('SET', keys[2], mine .. kept .. args[16], 'KEEPTTL')
  end
end
return {code, after, wait, number, before}
