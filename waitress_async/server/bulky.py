"""Which paths are likely to keep a thread busy with the disk. Loop's thread."""

from __future__ import annotations

from typing import Final

_MOST: Final = 1_000  # paths that are remembered


class BulkyPaths(dict[str, None]):
    """The paths whose responses went to disk when they were last asked for, because nobody took them fast
    enough. Those noted last are remembered."""

    def note(self, path: str, is_bulky: bool) -> None:
        """Take note of whether a response to `path` went to disk."""
        self.pop(path, None)
        if is_bulky:
            self[path] = None
            if len(self) > _MOST:
                del self[next(iter(self))]
