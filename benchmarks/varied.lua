-- For wrk: browser-like requests of which no two in a thousand are alike, by query and by Cookie.
--   wrk -t1 -c64 -d5 -s benchmarks/varied.lua http://127.0.0.1:8080/
local fields = {
  ["Host"] = "127.0.0.1",
  ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
  ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
  ["Accept-Encoding"] = "gzip, deflate, br",
  ["Accept-Language"] = "en-US,en;q=0.5",
  ["Referer"] = "http://127.0.0.1/",
  ["Cache-Control"] = "max-age=0",
  ["Connection"] = "keep-alive",
  ["Upgrade-Insecure-Requests"] = "1",
}
local requests, number = {}, 0

function init()
  for i = 1, 1000 do
    fields["Cookie"] = "sessionid=abcdefghijklmnop" .. i .. "; csrftoken=qrstuvwxyz"
    requests[i] = wrk.format("GET", "/item/" .. i .. "?page=" .. i, fields)
  end
end

function request()
  number = number % 1000 + 1
  return requests[number]
end
