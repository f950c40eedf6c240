"""How many connections the limit on open files allows."""

from __future__ import annotations

import logging
import sys
from typing import Final

from waitress_async.bridge import LogThread
from waitress_async.settings import Settings

# Where the setting leaves it to the descriptor limit.
_MOST: Final = 10_000

# Files that are not connections: listeners, the loop's own, logs, what the app opens.
_RESERVE: Final = 100


def connection_limit(settings: Settings, log: LogThread) -> int:
    """The limit on connections: the setting, but never more than there are descriptors for."""
    allowed = _allowed_by_descriptors()
    wanted = settings.connection_limit
    if wanted > allowed:
        log.log(logging.WARNING, "connection_limit %d lowered to %d by the descriptor limit", wanted, allowed)
    return min(wanted or _MOST, allowed)


def _allowed_by_descriptors() -> int:
    """Connections that fit under the soft limit, when each sends a file: its own, the app's, a duplicate."""
    try:
        import resource
    except ImportError:
        return sys.maxsize  # not a POSIX system
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (soft - _RESERVE) // 3)
