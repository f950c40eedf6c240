"""Event streams that many clients hold: ``python benchmarks/streams.py``. README.md says what and how."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from apps import HELLO
from clients import check, client_process, raise_descriptor_limit
from environments import own_python
from event_listeners import Listened, listen, pin
from measure import BenchmarkError, Cores, Server, running
from processes import cpu_seconds, exactly_anonymous, settled_anonymous, tree
from questions import Heard, ask
from rounds import Column, Result, Rounds, Table, options_of, ratios_of, run
from siege import Holdings, bystander, holdings
from tables import GUNICORN, OURS, STARLETTE, WAITRESS

THREADS = 4
ON_TIME = 0.1  # seconds after it was due
REHEARSAL = 10  # streams, for
REHEARSAL_SECONDS = 2.0
ARRIVALS = 1000  # streams a second
SETTLING = 2.0  # seconds after the last has come
GIVEN_UP = 3.0  # seconds after the last has come, where few are ever served
EMPTY_WITHIN = 10.0  # seconds after which all is closed that will be

# These have a thread for each stream, or none.
FEW = (
    GUNICORN.using("--worker-connections=10000"),
    WAITRESS.using("--connection-limit=10000", "--asyncore-use-poll"),
)
FRAMEWORKS = tuple(
    replace(OURS, name=f"through {name}", arguments=(*OURS.arguments[:-1], f"event_frameworks:{app}"))
    for name, app in (("Flask", "through_flask"), ("Django", "through_django"))
)

COLUMNS = (
    Column("served", "streams"),
    Column("on_time", "on time %", 2),
    Column("worst", "worst ms", 1),
    Column("each", "KiB a stream", 1),
    Column("cpu", "CPU us/event", 1),
    Column("threads", "threads"),
    Column("hello", "hello ms", 1),
    Column("hello_worst", "hello: worst", 1),
    Column("beside_worst", "beside: worst", 1),
    Column("left", "left over"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many streams, and for how long each of two parts: one for what they cost, one with hello beside."""

    streams: int
    seconds: float

    @property
    def arrival(self) -> float:
        return self.streams / ARRIVALS


def main() -> None:
    options = parse_options()
    raise_descriptor_limit()
    cores = choose_cores(pinned=options.pinned)
    quiet_python = own_python(options.cache)
    plans = [Plan(streams, options.seconds) for streams in (options.streams, options.framework_streams)]
    tables = [
        Table(
            f"{plan.streams} streams of an event a second, {THREADS} threads; "
            f"on time is within {ON_TIME * 1000:.0f} ms",
            servers,
            COLUMNS,
            partial(measure, plan=plan, cores=cores, quiet_python=quiet_python),
            ratios=ratios,
        )
        for plan, servers, ratios in zip(
            plans, ((OURS, STARLETTE, *FEW), FRAMEWORKS), (("each", "cpu"), ()), strict=True
        )
    ]
    measured = run(tables, options)
    print()
    for table, rounds, plan in zip(tables, measured, plans, strict=True):
        for line in verdicts(table, rounds, plan):
            print(line)


def parse_options() -> argparse.Namespace:
    parser = options_of("Compare what event streams cost.", rounds=3)
    parser.add_argument("--streams", type=int, default=2000, help="default: %(default)s")
    parser.add_argument(
        "--framework-streams", type=int, default=500, help="through each framework; default: %(default)s"
    )
    parser.add_argument(
        "--seconds", type=float, default=5, help="of each of the two parts; default: %(default)g"
    )
    parser.add_argument("--unpinned", dest="pinned", action="store_false", help="let the system choose cores")
    return parser.parse_args()


def choose_cores(*, pinned: bool) -> Cores:
    """The first for the server and the last for the clients, if there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return Cores(cores[0], cores[-1]) if pinned and len(cores) > 1 else Cores(None, None)


def measure(server: Server, python: Path, *, plan: Plan, cores: Cores, quiet_python: Path) -> Result:
    with (
        client_process() as clients,
        running(server, "event_apps:app", THREADS, python, cores.server) as (process, port),
    ):
        check(port, "/", HELLO)
        hold = partial(clients.submit, listen, port, core=cores.client)
        if server in FEW:
            now = time.monotonic()
            stay = plan.arrival + GIVEN_UP
            listened = hold(plan.streams, begin=now, arrival=plan.arrival, end=now + stay).result()
            return Result({"served": float(listened.served)})
        now = time.monotonic()
        hold(REHEARSAL, begin=now, arrival=0, end=now + REHEARSAL_SECONDS).result()
        with client_process() as questioner, bystander(quiet_python) as beside:
            questioner.submit(pin, cores.client).result()
            ask_hello = partial(questioner.submit, ask, port, beside, encrypted=False)
            ask_hello(0.5).result()
            return measure_held(process.pid, plan, hold, ask_hello)


def measure_held(
    pid: int,
    plan: Plan,
    hold: Callable[..., Future[Listened]],
    ask_hello: Callable[[float], Future[Heard]],
) -> Result:
    before, memory = holdings(pid), settled_anonymous(tree(pid))
    begin = time.monotonic()
    settled = begin + plan.arrival + SETTLING
    listening = hold(plan.streams, begin=begin, arrival=plan.arrival, end=settled + 2 * plan.seconds + 1)
    time.sleep(settled - time.monotonic())
    start, used = time.monotonic(), cpu_seconds(tree(pid))
    time.sleep(plan.seconds)
    end, used = time.monotonic(), cpu_seconds(tree(pid)) - used
    memory = exactly_anonymous(tree(pid)) - memory
    threads = holdings(pid).threads
    heard = ask_hello(plan.seconds).result()
    heard_until = time.monotonic()
    listened = listening.result()
    after = emptied(pid, before)
    counted = sum(start <= came < end for came in listened.came)
    late = [
        late for came, late in zip(listened.came, listened.late, strict=True) if start <= came < heard_until
    ]
    if not late:
        raise BenchmarkError(f"no events came: {listened.problems}")
    figures = {
        "served": float(listened.served),
        "on_time": sum(one <= ON_TIME for one in late) / len(late) * 100,
        "worst": max(late) * 1000,
        "each": memory / 1024 / listened.served,
        "cpu": used / counted * 1e6,
        "threads": float(threads),
        "left": float(after.left_over(before)),
    }
    for name, answers in (("hello", heard.new), ("beside", heard.beside)):
        if answers.latencies:
            figures |= {name: answers.median * 1000, f"{name}_worst": answers.worst * 1000}
    problems = listened.problems + heard.new.failures
    return Result(figures, ", ".join(f"{count} times {what}" for what, count in problems.most_common(3)))


def emptied(pid: int, before: Holdings) -> Holdings:
    """What it has once nothing is left of the streams, or after a bounded time."""
    deadline = time.monotonic() + EMPTY_WITHIN
    while (after := holdings(pid)).left_over(before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return after


def verdicts(table: Table, rounds: Rounds, plan: Plan) -> Iterator[str]:
    """For each figure that is wanted to be somewhere: where it is, and whether that is met."""
    for server in table.servers:
        results = [measured[server.name].figures for measured in rounds if server.name in measured]
        if server.distribution != OURS.distribution or not results:
            continue
        for key, wanted, bound in (
            ("served", "at least", float(plan.streams)),
            ("on_time", "at least", 95.0),
            ("threads", "at most", 20.0),
            ("hello_worst", "at most", 100.0),
            ("left", "at most", 0.0),
        ):
            title = next(column.title for column in table.columns if column.key == key)
            what = f"{server.name}, {title}"
            if all(key in figures for figures in results):
                yield verdict(what, statistics.median(figures[key] for figures in results), wanted, bound)
            else:
                yield f"NOT MET  {what}: a round has no figure"
    for key in table.ratios:
        title = next(column.title for column in table.columns if column.key == key)
        for name, each in ratios_of(table, rounds, key).items():
            yield verdict(f"{title}, beside {name}", statistics.median(each), "at most", 1.0)


def verdict(what: str, figure: float, wanted: str, bound: float) -> str:
    met = figure >= bound if wanted == "at least" else figure <= bound
    return f"{'met' if met else 'NOT MET':<8} {what}: {figure:.2f}, wanted {wanted} {bound:g}"


if __name__ == "__main__":
    main()
