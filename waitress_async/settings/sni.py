"""Which certificate is for which name: the entries of `sni`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# A host name as a client sends it (RFC 6066 section 3): in ASCII, without a dot at its end.
_SERVER_NAME: Final = re.compile(r"(?=.{1,253}\Z)(?:\*\.)?[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


def parse_sni(entries: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """The paths of certificate and key for each name, in lower case, which may begin with `*.`.

    The key is None where it is in the certificate's file. Raises ValueError, which tells the entry.
    """
    files: dict[str, tuple[str, str | None]] = {}
    for entry in entries:
        name, _, paths = entry.partition("=")
        certfile, comma, keyfile = paths.partition(",")
        name = name.lower()
        if not certfile or bool(comma) != bool(keyfile) or "," in keyfile:
            raise ValueError(f"{entry!a} is not NAME=CERTFILE,KEYFILE or NAME=CERTFILE")
        if not _SERVER_NAME.fullmatch(name):
            raise ValueError(f"{name!a} is not a host name or *.NAME in ASCII (xn--... for others)")
        if name in files:
            raise ValueError(f"{name} is there twice")
        files[name] = certfile, keyfile or None
    return files
