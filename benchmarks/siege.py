"""Hello while a server is besieged: ``python benchmarks/siege.py``. README.md says what and how."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from besiegers import Siege, Tally, besiege
from clients import client_process, raise_descriptor_limit
from environments import own_python
from held import flag_is_known
from measure import BenchmarkError, Server, running
from processes import MIB, cpu_seconds, descriptors, settled_anonymous, status, touch_pages, tree
from questions import PATIENCE, Answers, Heard, ask
from rounds import Column, Result, Table, options_of, run
from tables import BJOERN, CEILING, GRANIAN, GUNICORN, OURS, UVICORN, WAITRESS

THREADS = 4
STEADY = 3.0  # seconds; longer than a server lingers on a connection
SETTLES_WITHIN = 30.0

# With their defaults, but for the limit on connections, which would do the besiegers' work. The last two
# have none. waitress's select() cannot watch so many.
ROOMY = (
    OURS.using("--connection-limit=10000"),
    WAITRESS.using("--connection-limit=10000", "--asyncore-use-poll"),
    GUNICORN.using("--worker-connections=10000"),
    GRANIAN.using("--backpressure=10000"),
    BJOERN,
    UVICORN,
)

COLUMNS = (
    Column("new_answered", "answers"),
    Column("new_failed", "failed"),
    Column("new_median", "median ms", 2),
    Column("new_p99", "p99 ms", 1),
    Column("new_worst", "worst ms", 1),
    Column("kept_failed", "kept: failed"),
    Column("kept_median", "kept: median", 2),
    Column("kept_worst", "kept: worst", 1),
    Column("beside_p99", "beside: p99", 1),
    Column("beside_worst", "beside: worst", 1),
    Column("left", "left over"),
    Column("growth", "memory +%", 1),
)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a server's processes have when nobody is there; memory in bytes, of what no file stands behind."""

    threads: int
    descriptors: int
    files: int
    memory: int = 0

    def left_over(self, before: Holdings) -> int:
        """How many threads, descriptors and temporary files there are now that were not there before."""
        return sum(max(0, getattr(self, one) - getattr(before, one)) for one in COUNTED)


COUNTED = [field.name for field in fields(Holdings)][:-1]


def main() -> None:
    options = parse_options()
    raise_descriptor_limit()
    sieges = [siege_of(options, mib * MIB) for mib in options.mib]
    available, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A server may have a temporary file for each connection, and another descriptor to send it by.
    if available < (needed := max(siege.descriptors for siege in sieges) * 2):
        sys.exit(f"siege.py: the limit on descriptors is {available}; this siege needs {needed} (ulimit -Hn)")
    with tempfile.TemporaryDirectory() as folder:
        servers = ROOMY
        if options.tls and flag_is_known("--certfile", options):
            servers = (with_certificate(ROOMY[0], Path(folder)), *ROOMY[1:])
        run(
            [
                Table(
                    title_of(siege),
                    servers,
                    COLUMNS,
                    partial(
                        measure,
                        siege=siege,
                        rehearsal=siege.rehearsal(options.rehearsal),
                        before=options.before,
                        quiet_python=own_python(options.cache),
                    ),
                )
                for siege in sieges
            ],
            options,
        )


def parse_options() -> argparse.Namespace:
    parser = options_of("Compare how hello fares while a server is besieged.", rounds=3)
    parser.add_argument("--seconds", type=float, default=30, help="of the siege; default: %(default)g")
    parser.add_argument(
        "--before", type=float, default=5, help="seconds of hello without a siege; default: %(default)g"
    )
    parser.add_argument(
        "--rehearsal",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="the part of the siege that comes before anything is measured; default: %(default)g",
    )
    parser.add_argument(
        "--arrival", type=float, default=2, help="seconds in which they come; default: %(default)g"
    )
    parser.add_argument(
        "--mib", type=int, nargs="+", default=[16], help="of the answers; default: %(default)s"
    )
    parser.add_argument("--heads", type=int, default=250, help="a byte a second; default: %(default)s")
    parser.add_argument("--bodies", type=int, default=250, help="a byte a second; default: %(default)s")
    parser.add_argument("--readers", type=int, default=200, help="stop reading; default: %(default)s")
    parser.add_argument("--silent", type=int, default=1000, help="say nothing; default: %(default)s")
    parser.add_argument("--resets", type=int, default=5000, help="in all; default: %(default)s")
    parser.add_argument("--pipelined", action="store_true", help="some of these send 20 requests at once")
    parser.add_argument("--handshakes", type=int, default=50, help="with --tls; default: %(default)s")
    parser.add_argument(
        "--tls",
        action="store_true",
        help="this server speaks TLS, and so does everybody to it; handshakes are left half done at each",
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    return parser.parse_args()


def siege_of(options: argparse.Namespace, answer: int) -> Siege:
    return Siege(
        heads=options.heads,
        bodies=options.bodies,
        readers=options.readers,
        silent=options.silent,
        handshakes=options.handshakes if options.tls else 0,
        resets=options.resets,
        pipelined=options.pipelined,
        answer=answer,
        seconds=options.seconds,
        after=PATIENCE,  # the last question may wait so long
        arrival=options.arrival,
        seed=options.seed,
    )


def title_of(siege: Siege) -> str:
    handshakes = f", {siege.handshakes} half handshakes" if siege.handshakes else ""
    return (
        f"hello for {siege.seconds:g} s, {THREADS} threads, beside {siege.heads} endless heads and "
        f"{siege.bodies} endless bodies of a byte a second, {siege.readers} that stop reading "
        f"{siege.answer / MIB:g} MiB, {siege.silent} silent connections{handshakes}, {siege.resets} resets"
    )


def with_certificate(server: Server, folder: Path) -> Server:
    """The same with a certificate of its own, made now."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    kind = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    command = ["openssl", "req", "-x509", *kind.split(), "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return server.using(f"--certfile={certificate}", f"--keyfile={key}")


def measure(
    server: Server, python: Path, *, siege: Siege, rehearsal: Siege, before: float, quiet_python: Path
) -> Result:
    encrypted = any(argument.startswith("--certfile") for argument in server.arguments)
    with (
        client_process() as besieging,
        client_process() as asking,
        bystander(quiet_python) as beside,
        running(server, "apps:bodies", THREADS, python) as (process, port),
    ):
        questions = partial(ask, port, beside, encrypted=encrypted)
        clients = partial(besiege, port, encrypted=encrypted)
        besieging.submit(clients, rehearsal).result()
        holdings_before = settled(process.pid)
        quiet = asking.submit(questions, before).result()
        if not quiet.new.latencies:
            raise BenchmarkError(f"it answers nobody after the rehearsal: {told(quiet.new)}")
        touch_pages(siege.readers * siege.answer)  # some servers put what is not read in files
        used = cpu_seconds(tree(process.pid))
        begin = time.monotonic()
        besieged = besieging.submit(clients, siege)
        heard = asking.submit(questions, siege.seconds).result()
        tally = besieged.result()
        used = (cpu_seconds(tree(process.pid)) - used) / (time.monotonic() - begin)
        if process.poll() is not None:
            raise BenchmarkError(f"it ended in the siege, with status {process.returncode}")
        holdings_after = settled(process.pid, like=holdings_before)
    return Result(
        figures_of(heard, quiet, holdings_before, holdings_after) | {"cpu": used},
        note_of(heard, quiet, tally, siege, holdings_before, holdings_after, used),
    )


@contextmanager
def bystander(python: Path) -> Iterator[int]:
    """The port of a server that nobody besieges. What is raised meanwhile is not its fault."""
    server = running(CEILING, "", THREADS, python)
    _, port = server.__enter__()
    try:
        yield port
    finally:
        server.__exit__(None, None, None)


def settled(pid: int, like: Holdings | None = None) -> Holdings:
    """What it has once that is steady, and as before; in any case after a bounded time."""
    deadline = time.monotonic() + SETTLES_WITHIN
    latest = holdings(pid)
    since = time.monotonic()
    while (now := time.monotonic()) < deadline:
        if now - since >= STEADY and (like is None or not latest.left_over(like)):
            break
        time.sleep(0.2)
        if (again := holdings(pid)) != latest:
            latest, since = again, now
    return Holdings(latest.threads, latest.descriptors, latest.files, settled_anonymous(tree(pid)))


def holdings(pid: int) -> Holdings:
    threads = open_descriptors = files = 0
    for one in tree(pid):
        try:
            count, nameless = descriptors(one)
        except OSError:
            continue  # it has ended
        threads += status(one).get("Threads", 0)
        open_descriptors += count
        files += nameless
    return Holdings(threads, open_descriptors, files)


def figures_of(heard: Heard, quiet: Heard, before: Holdings, after: Holdings) -> dict[str, float]:
    figures = {
        "left": float(after.left_over(before)),
        "growth": (after.memory / before.memory - 1) * 100,
        "memory_before": before.memory / MIB,
        "memory_after": after.memory / MIB,
    }
    series = {
        "new": heard.new,
        "kept": heard.kept,
        "beside": heard.beside,
        "quiet_new": quiet.new,
        "quiet_kept": quiet.kept,
    }
    for name, answers in series.items():
        figures[f"{name}_answered"] = float(len(answers.latencies))
        figures[f"{name}_failed"] = float(answers.failures.total())
        if answers.latencies:
            figures[f"{name}_median"] = answers.median * 1000
            figures[f"{name}_p99"] = answers.p99 * 1000
            figures[f"{name}_worst"] = answers.worst * 1000
    return figures


def note_of(
    heard: Heard,
    quiet: Heard,
    tally: Tally,
    siege: Siege,
    before: Holdings,
    after: Holdings,
    used: float,
) -> str:
    """What no column says, in lines of its own."""
    lines = [
        f"in the siege: new {told(heard.new)}; kept {told(heard.kept)}; beside {told(heard.beside)}",
        f"before it: new {told(quiet.new)}; kept {told(quiet.kept)}",
        besiegers_told(tally, siege),
        ", ".join(f"{one} {getattr(before, one)} -> {getattr(after, one)}" for one in COUNTED)
        + f", memory {before.memory / MIB:.1f} -> {after.memory / MIB:.1f} MiB; "
        f"CPU {used:.0%} of a core, the besiegers' {tally.processor / (siege.seconds + siege.after):.0%}",
    ]
    return "".join(f"\n{'':8}{line}" for line in lines)


def told(answers: Answers) -> str:
    """Median, p99 and worst, or what went wrong instead."""
    said = [f"{count} times {reason}" for reason, count in answers.failures.most_common(3)]
    if answers.latencies:
        each = answers.median, answers.p99, answers.worst
        three = " / ".join(f"{latency * 1000:.1f}" for latency in each)
        said.insert(0, f"{three} ms at {answers.worst_at:.1f} s")
    else:
        said.insert(0, "nobody was answered")
    return ", ".join(said)


def besiegers_told(tally: Tally, siege: Siege) -> str:
    said = [
        f"{kind} {tally.stood[kind]} of {count}{counted(tally, kind)}"
        for kind, count in siege.standing.items()
    ]
    resets = f"resets {tally.came['resets']} of {siege.resets}"
    return f"there at its end: {', '.join(said)}; {resets}"


def counted(tally: Tally, kind: str) -> str:
    said = [
        f"{word} {times[kind]} times"
        for word, times in (("cut", tally.cut), ("kept out", tally.kept_out))
        if times[kind]
    ]
    return f" ({', '.join(said)})" if said else ""


if __name__ == "__main__":
    main()
