"""Time from nothing to the first answer: ``python benchmarks/startup.py``. README.md says what and how."""

import http.client
import re
import statistics
import subprocess
import time
from pathlib import Path

from measure import HERE, HOST, BenchmarkError, Server, end, free_port
from rounds import Column, Result, Table, options_of, run
from tables import GRANIAN, GUNICORN, OURS, WAITRESS

REPEATS = 5

# What the command of each imports before it reads its arguments and serves one app, in one process.
IMPORTS = {
    "waitress_async": "waitress_async.cli",
    "waitress": "waitress.runner, waitress",
    "gunicorn": "gunicorn.app.wsgiapp, gunicorn.arbiter, gunicorn.workers.gthread",
    "granian": "granian.cli, granian.server, granian.wsgi",
}

# What an asyncio program has loaded already. The others are compared with an interpreter that has nothing.
BARE = {"waitress_async": "asyncio, uvloop"}


def main() -> None:
    options = options_of("Compare how long servers take to start.", rounds=5).parse_args()
    table = Table(
        "from nothing to the first answer",
        (OURS, WAITRESS, GUNICORN, GRANIAN),
        (
            Column("imports", "imports ms", 1),
            Column("bare", "of a bare interpreter", 1),
            Column("over", "over that", 1),
            Column("answer", "first answer ms", 1),
        ),
        measure,
        ratios=("over", "answer"),
    )
    run([table], options)


def measure(server: Server, python: Path) -> Result:
    bare_modules = BARE.get(server.name, "sys")
    imports, bare, answers = [], [], []
    for _ in range(REPEATS):
        bare.append(import_milliseconds(python, bare_modules))
        imports.append(import_milliseconds(python, IMPORTS[server.name]))
        answers.append(milliseconds_to_answer(server, python))
    figures = {
        "imports": statistics.median(imports),
        "bare": statistics.median(bare),
        "answer": statistics.median(answers),
    }
    figures["over"] = figures["imports"] - figures["bare"]
    return Result(figures)


def import_milliseconds(python: Path, modules: str) -> float:
    """The time of all imports, those of the interpreter's own start among them, as `-X importtime` has it."""
    command = [str(python), "-X", "importtime", "-c", f"import {modules}"]
    done = subprocess.run(command, cwd=HERE, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{modules}: {done.stderr[-500:]}")
    return sum(int(own) for own in re.findall(r"import time: +([0-9]+) \|", done.stderr)) / 1000


def milliseconds_to_answer(server: Server, python: Path) -> float:
    """From the start of the process to the end of the first answer, asked for without a pause."""
    port = free_port()
    values = {"port": port, "app": "apps:hello", "threads": 4}
    arguments = [argument.format_map(values) for argument in server.arguments]
    began = time.perf_counter()
    process = subprocess.Popen(
        [python, *arguments], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and time.perf_counter() - began < 15:
            connection = http.client.HTTPConnection(HOST, port, timeout=15)
            try:
                connection.request("GET", "/")
                if connection.getresponse().status == 200:
                    return (time.perf_counter() - began) * 1000
            except OSError:
                time.sleep(0.002)
            finally:
                connection.close()
        raise BenchmarkError(f"{server.name} did not answer")
    finally:
        end(process)


if __name__ == "__main__":
    main()
