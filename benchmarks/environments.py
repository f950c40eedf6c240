"""Virtual environments for what is measured, made once and kept in a cache folder."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import Server

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "waitress_async-benchmarks"


def python_of(server: Server, cache: Path) -> Path:
    """An interpreter that has that server."""
    return own_python(cache) if server.environment == "own" else peer_python(server, cache)


def own_python(cache: Path) -> Path:
    """An interpreter that has waitress_async: the running one if it can import it."""
    if importlib.util.find_spec("waitress_async"):
        return Path(sys.executable)
    # Editable, so that what is measured is the tree as it stands.
    recipe = (REPOSITORY / "pyproject.toml").read_text() + str(REPOSITORY)
    return _environment(cache, "own", recipe, ["--editable", str(REPOSITORY)])


def peer_python(server: Server, cache: Path) -> Path:
    """An interpreter that has that other server, as peers.txt says, in an environment of its own."""
    wanted = {server.distribution, *server.needs}
    pinned = [line for line in (HERE / "peers.txt").read_text().split() if line.partition("==")[0] in wanted]
    return _environment(cache, server.distribution, "\n".join(pinned), pinned)


def installed_version(python: Path, distribution: str) -> str:
    script = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def _environment(cache: Path, name: str, recipe: str, pip_arguments: Sequence[str]) -> Path:
    """The interpreter of the environment that `recipe` describes. Another recipe, another environment."""
    digest = hashlib.sha256(json.dumps([recipe, sys.executable, sys.version]).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        print(f"Installing {name} into {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_arguments],
            check=True,
        )
        complete.touch()
    return python
