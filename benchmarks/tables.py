"""Who is measured, and with what. Another server or another workload is another entry here."""

from dataclasses import replace

from measure import Server

OURS = Server(
    name="waitress_async",
    distribution="waitress-async",
    environment="own",
    arguments=(
        "-m",
        "waitress_async",
        "--host=127.0.0.1",
        "--port={port}",
        "--threads={threads}",
        "{app}",
    ),
)
WAITRESS = Server(
    name="waitress",
    distribution="waitress",
    environment="peers",
    arguments=("-m", "waitress", "--listen=127.0.0.1:{port}", "--threads={threads}", "{app}"),
)
CEILING = Server(
    name="ceiling",
    distribution="uvloop",
    environment="own",
    arguments=("ceiling.py", "{port}", "{app}"),
)
GUNICORN = Server(
    name="gunicorn",
    distribution="gunicorn",
    environment="peers",
    arguments=(
        "-m",
        "gunicorn",
        "--bind=127.0.0.1:{port}",
        "--worker-class=gthread",
        "--workers=1",
        "--threads={threads}",
        "--no-control-socket",
        "{app}",
    ),
)
GRANIAN = Server(
    name="granian",
    distribution="granian",
    environment="peers",
    arguments=(
        "-m",
        "granian",
        "--interface=wsgi",
        "--host=127.0.0.1",
        "--port={port}",
        "--workers=1",
        "--blocking-threads={threads}",
        "{app}",
    ),
)
CHEROOT = Server(
    name="cheroot",
    distribution="cheroot",
    environment="peers",
    arguments=("-m", "cheroot", "--bind=127.0.0.1:{port}", "--threads={threads}", "{app}"),
)
HYPERCORN = Server(
    name="hypercorn",
    distribution="hypercorn",
    environment="peers",
    # Its threads are those of asyncio's default executor.
    arguments=("-m", "hypercorn", "--bind=127.0.0.1:{port}", "--workers=1", "wsgi:{app}"),
)
UVICORN = Server(
    name="uvicorn",
    distribution="uvicorn",
    environment="peers",
    arguments=("-m", "uvicorn", "--host=127.0.0.1", "--port={port}", "--no-access-log", "asgi_{app}"),
    needs=("a2wsgi", "httptools", "uvloop"),
)
# The app written for it, not called by a bridge.
STARLETTE = replace(UVICORN, name="uvicorn, Starlette", needs=("starlette", "httptools", "uvloop"))

BJOERN = Server(
    name="bjoern",
    distribution="bjoern",
    environment="peers",
    # It has one thread, whatever is asked, and is built from source: that needs the headers of libev.
    arguments=("bjoern_server.py", "{port}", "{app}"),
)

UWSGI = Server(
    name="uwsgi",
    distribution="uwsgi",
    environment="peers",
    arguments=("uwsgi_server.py", "{port}", "{threads}", "{app}"),  # built from source
)

# What a browser sends: ten fields with Host, which wrk adds.
BROWSER_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "http://127.0.0.1/",
    "Connection": "keep-alive",
    "Cookie": "session=0d9f1c3ab5e84f6f9a7d; theme=dark; seen=1718000000",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Mode": "navigate",
}
