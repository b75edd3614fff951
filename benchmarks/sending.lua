-- wrk's script: sends each prepared request once, counts the answers, and ends the run when none is left.
-- Arguments: the text a right answer holds, how often it holds it, then the files. A file is a row of requests, each
-- after its length in eight digits. One thread only, since the counts are its own.

local ffi = require("ffi")
ffi.cdef([[
  struct bench_time { long seconds; long micros; };
  int gettimeofday(struct bench_time *now, void *zone);
  int getpid(void);
  int kill(int process, int signal);
]])
local clock = ffi.new("struct bench_time")
local SIGINT = 2

local function now()
  ffi.C.gettimeofday(clock, nil)
  return tonumber(clock.seconds) + tonumber(clock.micros) / 1e6
end

local threads = {}
function setup(thread)
  threads[#threads + 1] = thread
end

sent, answered, not_2xx, wrong, began, ended = 0, 0, 0, 0, 0, 0
local expected, each, files, file, at = "", 1, {}, nil, 0

function init(args)
  expected, each = args[1], tonumber(args[2])
  for index = 3, #args do
    files[#files + 1] = args[index]
  end
end

local function following()
  while true do
    local length = file and file:read(8)
    if length then
      return file:read(tonumber(length))
    end
    at = at + 1
    if not files[at] then
      return nil
    end
    file = assert(io.open(files[at], "rb"))
  end
end

-- wrk asks for one request before the run, to look at it, and does not send it.
local looked_at = nil

function request()
  if began == 0 then
    if not looked_at then
      looked_at = following() or ""
      return looked_at
    end
    began = now()
  end
  local text = looked_at or following()
  looked_at = nil
  if not text then
    -- Nothing is sent, and the connection rests.
    return ""
  end
  sent = sent + 1
  return text
end

function response(status, headers, body)
  answered = answered + 1
  ended = now()
  if status < 200 or status > 299 then
    not_2xx = not_2xx + 1
  else
    local found, from = 0, 1
    while true do
      local first, last = string.find(body, expected, from, true)
      if not first then
        break
      end
      found, from = found + 1, last + 1
    end
    wrong = wrong + math.abs(each - found)
  end
  if answered == sent and not files[at] then
    -- wrk sleeps for the whole duration otherwise.
    ffi.C.kill(ffi.C.getpid(), SIGINT)
  end
end

function done(summary, latency, requests)
  local thread = threads[1]
  local function of(name)
    return thread:get(name)
  end
  local errors = summary.errors
  print(string.format(
    '{"sent": %d, "answered": %d, "not_2xx": %d, "wrong": %d, "errors": %d, "seconds": %.6f,'
      .. ' "p50_ms": %.3f, "p99_ms": %.3f, "p999_ms": %.3f}',
    of("sent"), of("answered"), of("not_2xx"), of("wrong"),
    errors.connect + errors.read + errors.write + errors.timeout, of("ended") - of("began"),
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency:percentile(99.9) / 1000
  ))
end
