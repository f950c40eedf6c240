-- What wrk is to send besides its flags, and what it has seen, as one line of JSON.
-- Arguments: the method, "varied" or "alike", and a file with the body, if there is one.
local MANY = 1000
local requests, number = {}, 0

function init(arguments)
  wrk.method = arguments[1]
  if arguments[3] then
    local file = assert(io.open(arguments[3], "rb"))
    wrk.body = file:read("*a")
    file:close()
  end
  if arguments[2] == "varied" then
    for i = 1, MANY do
      wrk.headers["Cookie"] = "session=0d9f1c3ab5e84f6f9a7d" .. i .. "; theme=dark; seen=1718000000"
      requests[i] = wrk.format(wrk.method, "/?page=" .. i)
    end
    function request()
      number = number % MANY + 1
      return requests[number]
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  local figures = {
    requests = summary.requests,
    microseconds = summary.duration,
    socket_errors = errors.connect + errors.read + errors.write + errors.timeout,
    bad_statuses = errors.status,
    p50 = latency:percentile(50),
    p99 = latency:percentile(99),
    p999 = latency:percentile(99.9),
  }
  local parts = {}
  for name, value in pairs(figures) do
    parts[#parts + 1] = string.format('"%s": %d', name, value)
  end
  io.write("\n{", table.concat(parts, ", "), "}\n")
end
