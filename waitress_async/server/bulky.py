"""Which paths are likely to keep a thread busy with the disk. Loop's thread."""

from __future__ import annotations

from typing import Final

_MOST: Final = 1_000  # paths that are remembered


class BulkyPaths:
    """The paths whose responses went to disk when they were last asked for, because nobody took them fast
    enough. Those added last are remembered."""

    def __init__(self) -> None:
        self._paths: dict[str, None] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._paths

    def note(self, path: str, is_bulky: bool) -> None:
        """Take note of whether a response to `path` went to disk."""
        self._paths.pop(path, None)
        if is_bulky:
            self._paths[path] = None
            if len(self._paths) > _MOST:
                del self._paths[next(iter(self._paths))]
