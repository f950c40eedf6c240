"""uWSGI is a program and no module: ``python uwsgi_server.py PORT THREADS MODULE:APP``."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    port, threads, app = sys.argv[1:]
    program = Path(sys.executable).with_name("uwsgi")
    arguments = [
        f"--http11-socket=127.0.0.1:{port}",
        f"--threads={threads}",
        f"--module={app}",
        "--enable-threads",
        "--disable-logging",
        "--listen=100",
        "--need-app",
    ]
    os.execv(program, [str(program), *arguments])
