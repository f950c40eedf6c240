"""`python -m waitress_async`."""

from __future__ import annotations

from waitress_async.cli import main

if __name__ == "__main__":
    main(prog_name="python -m waitress_async")
