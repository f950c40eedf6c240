"""How many connections the limit on open files allows."""

from __future__ import annotations

import sys

# Files that are not connections: listeners, the loop's own, logs, what the app opens.
_RESERVE = 100


def descriptor_allowance() -> int:
    """Connections that fit under the soft descriptor limit, when each may hold a temporary file as well."""
    try:
        import resource
    except ImportError:
        return sys.maxsize  # not a POSIX system
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (soft - _RESERVE) // 2)
