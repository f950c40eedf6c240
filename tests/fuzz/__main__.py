"""A long run by hand, parser and whole servers in turn: `python -m tests.fuzz --minutes 20 --seed 1`.

Ends with 1 if anything was found. `--case` shows and judges one stream of a seed again, for the parser.
"""

from __future__ import annotations

# ruff: noqa: T201  it prints what it found
import argparse
import faulthandler
import itertools
import random
import sys
import time
from collections import Counter
from pathlib import Path

from tests.conftest import LOOPS
from tests.fuzz import whole
from tests.fuzz.alone import Alone
from tests.fuzz.mutate import behind_large_body, case, corpus

_HANGS = 300  # seconds, after which it tells where, and ends
_CASES = 2_000  # to the parser, in a turn
_STREAMS = 300  # to each kind of server on each loop, in a turn
_LARGE = 60  # one in so many of these is large


def main() -> int:
    arguments = parse_arguments()
    sources = corpus()
    alone = Alone(arguments.seed, sources)
    if arguments.case is not None:
        print(case(arguments.seed, arguments.case, sources))
        print(alone.judge(arguments.case) or "nothing found")
        return 0
    served = whole.Figures()
    numbers = itertools.count()
    end = time.monotonic() + 60 * arguments.minutes
    spent = Counter[str]()
    while time.monotonic() < end:
        since = time.monotonic()
        faulthandler.dump_traceback_later(_HANGS, exit=True)
        if spent["parser"] <= spent["servers"]:
            for _ in range(_CASES):
                alone.run_next()
            spent["parser"] += int(1_000 * (time.monotonic() - since))
        else:
            for name, loop in itertools.product(whole.KINDS, LOOPS):
                chance = random.Random(f"{arguments.seed}:{next(numbers)}")
                streams = [case(arguments.seed, -1 - next(numbers), sources) for _ in range(_STREAMS)]
                for number in range(0, _STREAMS, _LARGE):
                    streams[number] = behind_large_body(chance, streams[number])
                whole.run_batch(name, streams, chance, served, LOOPS[loop])
            spent["servers"] += int(1_000 * (time.monotonic() - since))
    faulthandler.cancel_dump_traceback_later()
    report(arguments, spent, alone, served)
    return bool(alone.findings or served.findings)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this stream")
    parser.add_argument("--save", type=Path, help="a folder for the streams that something was found with")
    return parser.parse_args()


def report(arguments: argparse.Namespace, spent: Counter[str], alone: Alone, served: whole.Figures) -> None:
    print(f"seed {arguments.seed}, {len(alone.sources)} files")
    print(f"the parser alone, {spent['parser'] / 1_000:.0f} s: {alone.summary()}")
    print(f"whole servers, {spent['servers'] / 1_000:.0f} s: {served.summary()}")
    streams = [("parser", *finding) for finding in alone.findings] + served.findings
    for number, (where, stream, found) in enumerate(streams):
        print(f"\nFOUND ({where}): {found[:2_000]}\n{stream!r}")
        if arguments.save is not None:
            arguments.save.mkdir(parents=True, exist_ok=True)
            (arguments.save / f"{arguments.seed}-{number}.request").write_bytes(stream)
    for where, stream, came in [("parser", *one) for one in alone.stricter[:5]] + served.stricter[:5]:
        print(f"\nstricter than the reference ({where}): {came[:400]}\n{stream[:400]!r}")


if __name__ == "__main__":
    sys.exit(main())
