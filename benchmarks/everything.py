"""All comparisons one after the other, and their pictures: ``python benchmarks/everything.py DIR``.

README.md says what and how.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environments import default_cache
from measure import HERE

A_SHORT_ROUND = ("--rounds=1", "--seconds=1")


@dataclass(frozen=True, slots=True)
class Part:
    """A script and its arguments, which writes what it finds into DIR/`name`.json."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()  # one short round


PARTS = (
    Part("workloads", "workloads.py", quick=A_SHORT_ROUND),
    Part("workloads-unpinned", "workloads.py", ("hello", "compute", "--unpinned"), A_SHORT_ROUND),
    Part("growth", "growth.py", quick=A_SHORT_ROUND),
    Part("latency", "latency.py", quick=A_SHORT_ROUND),
    Part("uploads", "uploads.py", quick=("--rounds=1", "--clients=2", "--mib=8")),
    Part("downloads", "downloads.py", quick=("--rounds=1", "--clients=2", "--mib=16")),
    Part("slow_readers", "slow_readers.py", quick=("--rounds=1", "--seconds=2", "--mib=32")),
    Part("held", "held.py", ("--part=idle", "--rounds=3"), ("--rounds=1", "--idle=200")),
    Part(
        "streams",
        "streams.py",
        quick=("--rounds=1", "--seconds=1", "--streams=200", "--framework-streams=50"),
    ),
    Part("startup", "startup.py", quick=("--rounds=1",)),
)


def main() -> None:
    options = parse_options()
    # As an exception, so that the comparison that runs is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = [
        part.name for part in PARTS if part.name in (options.only or (part.name,)) and not done(part, options)
    ]
    # Nobody takes the figures of a quick run for those of the project: they stay in the folder.
    pages = [f"--docs={options.folder}"] if options.quick else []
    if not succeeds("pictures.py", [str(options.folder), *pages]):
        failed.append("pictures")
    if failed:
        sys.exit(f"everything.py: these failed: {', '.join(failed)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make all comparisons, and draw the pictures.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the figures go, a file for each part")
    parser.add_argument(
        "--only",
        action="append",
        choices=[part.name for part in PARTS],
        metavar="NAME",
        help="this part, and the pictures of what there is; repeat it for more. "
        f"The parts are {', '.join(part.name for part in PARTS)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round of each; page and pictures go to DIR too"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=default_cache(),
        help="where environments are kept; default: %(default)s",
    )
    return parser.parse_args()


def done(part: Part, options: argparse.Namespace) -> bool:
    """Whether that part has come to its end."""
    file = options.folder.resolve() / f"{part.name}.json"
    file.unlink(missing_ok=True)  # if this run fails, an older one is not to be taken for it
    quick = part.quick if options.quick else ()
    return succeeds(part.script, [*part.arguments, *quick, f"--json={file}", f"--cache={options.cache}"])


def succeeds(script: str, arguments: Sequence[str]) -> bool:
    print(f"\n=== {script} {shlex.join(arguments)}\n", flush=True)
    began = time.monotonic()
    with subprocess.Popen([sys.executable, HERE / script, *arguments]) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # it ends its server itself
            raise
    print(f"\n=== {script}: status {status}, {time.monotonic() - began:.0f} s", flush=True)
    return status == 0


if __name__ == "__main__":
    main()
