"""This tree beside another of its history: ``python benchmarks/trees.py REVISION``. README.md says how."""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path

from environments import REPOSITORY
from loads import choose_cores
from measure import BenchmarkError, Cores, Server, measure
from rounds import Column, Result, Table, options_of, run
from tables import OURS
from workloads import HELLO_LOAD

WARM_UP = 1  # seconds

COLUMNS = (
    Column("rate", "requests/s", more_is_better=True),
    Column("cpu", "CPU us/request", 2),
    Column("errors", "errors"),
)


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        try:
            cores = choose_cores(pinned=True)
            extract(options.revision, Path(folder))
        except BenchmarkError as error:
            sys.exit(f"trees.py: {error}")
        this, other = OURS.using(name="this tree"), OURS.using(name=options.revision)
        table = Table(
            title=f"hello: {HELLO_LOAD.connections} connections, {HELLO_LOAD.threads} threads",
            servers=(this, other),
            columns=COLUMNS,
            measure=partial(
                measure_tree,
                trees={this.name: REPOSITORY, other.name: Path(folder)},
                cores=cores,
                seconds=options.seconds,
            ),
            ratios=("rate", "cpu"),
        )
        run([table], options)


def parse_options() -> argparse.Namespace:
    parser = options_of("Compare the plain path of this tree with that of a revision.", rounds=7)
    parser.add_argument("revision", help="what git calls the other tree: a commit, a tag, a branch")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement; default: %(default)s")
    return parser.parse_args()


def extract(revision: str, folder: Path) -> None:
    """Put the package of that revision into `folder`."""
    done = subprocess.run(
        ["git", "archive", revision, "waitress_async"], cwd=REPOSITORY, check=False, capture_output=True
    )
    if done.returncode:
        raise BenchmarkError(done.stderr.decode().strip())
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def measure_tree(
    server: Server, python: Path, *, trees: Mapping[str, Path], cores: Cores, seconds: int
) -> Result:
    tree = trees[server.name]
    if not (tree / "waitress_async").samefile(package_of(python, tree)):
        raise BenchmarkError(f"another waitress_async than that of {tree} is imported")
    path = {"PYTHONPATH": str(tree)}
    measured = measure(server, HELLO_LOAD, python, cores, warm_up=WARM_UP, seconds=seconds, environment=path)
    return Result(
        {
            "rate": measured.requests_per_second,
            "cpu": measured.cpu_microseconds,
            "errors": measured.errors,
        }
    )


def package_of(python: Path, tree: Path) -> Path:
    """Where a server imports its package from."""
    script = "import waitress_async; print(waitress_async.__path__[0])"
    found = subprocess.run(
        [python, "-c", script],
        cwd=Path(__file__).parent,
        env={"PYTHONPATH": str(tree)},
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(found.stdout.strip())


if __name__ == "__main__":
    main()
