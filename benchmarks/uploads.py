"""Large uploads at once: ``python benchmarks/uploads.py``. README.md says what and how."""

from functools import partial
from pathlib import Path

from apps import HELLO, content, summed
from clients import Load, at_once, check, client_process, connected, head_of, whole_answer
from measure import BenchmarkError, Server, running
from processes import MIB, Watch, touch_pages
from rounds import Column, Result, Table, options_of, run
from tables import GRANIAN, GUNICORN, OURS, WAITRESS

COLUMNS = (
    Column("cpu", "CPU s", 2),
    Column("wall", "wall s", 2),
    Column("anonymous", "RssAnon MiB", 1),
    Column("resident", "VmHWM MiB", 1),
)


def main() -> None:
    parser = options_of("Compare what large uploads cost a server.", rounds=3)
    parser.add_argument("--clients", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--mib", type=int, default=64, help="of each upload; default: %(default)s")
    options = parser.parse_args()
    run(
        [
            Table(
                f"uploads: {options.clients} at once of {options.mib} MiB, 4 threads; memory at its peak",
                (OURS, WAITRESS, GUNICORN, GRANIAN),
                COLUMNS,
                partial(measure, clients=options.clients, size=options.mib * MIB),
                ratios=("cpu", "wall"),
            )
        ],
        options,
    )


def measure(server: Server, python: Path, *, clients: int, size: int) -> Result:
    with client_process() as process, running(server, "apps:bodies", 4, python) as (popen, port):
        check(port, "/", HELLO)
        body = b"".join(content(7, MIB))
        check(port, "/upload", summed([body]), body)
        touch_pages(2 * clients * size)
        with Watch(popen.pid) as watch:
            load = process.submit(upload, port, clients, size).result()
        if load.problems:
            raise BenchmarkError("; ".join(load.problems))
        return Result(
            {
                "cpu": watch.cpu_seconds,
                "wall": load.seconds,
                "anonymous": watch.anonymous_peak / MIB,
                "resident": watch.resident_peak / MIB,
            }
        )


def upload(port: int, clients: int, size: int) -> Load:
    """The client process: each upload as fast as the system takes it."""
    body = b"".join(content(0, size))
    expected = summed([body])

    def one(_number: int) -> None:
        with connected(port) as sock:
            sock.sendall(head_of("POST", "/upload", {"Content-Length": str(size)}))
            sock.sendall(body)
            if (answer := whole_answer(sock)) != expected:
                raise BenchmarkError(f"it answered {answer[:100]!r}")

    return at_once(clients, one)


if __name__ == "__main__":
    main()
