"""Large files downloaded at once: ``python benchmarks/downloads.py``. README.md says what and how."""

import tempfile
from functools import partial
from pathlib import Path

from apps import FILE, HELLO, content, write_file
from clients import BUFFER, Load, at_once, begin_answer, check, client_process, connected, head_of
from measure import BenchmarkError, Server, running
from processes import MIB, Watch, touch_pages
from rounds import Result, Table, options_of, run
from tables import GRANIAN, GUNICORN, OURS, WAITRESS
from uploads import COLUMNS

CHECKED = 100_000


def main() -> None:
    parser = options_of("Compare what large files cost a server to send.", rounds=3)
    parser.add_argument("--clients", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--mib", type=int, default=256, help="of the file; default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "body")
        write_file(file, options.mib * MIB)
        run(
            [
                Table(
                    f"downloads: {options.clients} at once of a file of {options.mib} MiB by "
                    "wsgi.file_wrapper, 4 threads; memory at its peak",
                    (OURS, GUNICORN, WAITRESS, GRANIAN),
                    COLUMNS,
                    partial(measure, clients=options.clients, file=file, size=options.mib * MIB),
                    ratios=("cpu", "wall"),
                )
            ],
            options,
        )


def measure(server: Server, python: Path, *, clients: int, file: Path, size: int) -> Result:
    with (
        client_process() as process,
        running(server, "apps:bodies", 4, python, environment={FILE: str(file)}) as (popen, port),
    ):
        check(port, "/", HELLO)
        # The end of the file, compared: while it is measured, only lengths are.
        seed = size - CHECKED
        check(port, f"/file/{CHECKED}/{seed}", b"".join(content(seed, CHECKED)))
        touch_pages(2 * size)
        with Watch(popen.pid) as watch:
            load = process.submit(download, port, clients, size).result()
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


def download(port: int, clients: int, size: int) -> Load:
    """The client process: each takes the file as fast as it comes, into the same memory again and again."""

    def one(_number: int) -> None:
        buffer = memoryview(bytearray(BUFFER))
        with connected(port) as sock:
            sock.sendall(head_of("GET", f"/file/{size}/0"))
            length, body = begin_answer(sock)
            if length != size:
                raise BenchmarkError(f"it answered {length} bytes")
            left = size - len(body)
            while left:
                if not (received := sock.recv_into(buffer)):
                    raise BenchmarkError(f"the connection closed {left} bytes before the end")
                left -= received

    return at_once(clients, one)


if __name__ == "__main__":
    main()
