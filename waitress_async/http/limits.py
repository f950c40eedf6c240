"""The bounds of one connection's input, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of each part of a request is taken before it is refused. Sizes in bytes.

    The defaults are the server's defaults. A part that is exactly as large as its limit is accepted.
    """

    header_size: int = 262_144  # request line, fields and the empty line together
    header_fields: int = 100
    target_size: int = 65_536
    body_size: int = 1_073_741_824  # after the chunks are decoded
    chunk_line_size: int = 4_096  # one chunk's size with its extensions
    chunk_extensions_size: int = 65_536  # the extensions of all chunks of a body
    trailer_size: int = 65_536
    empty_lines: int = 4  # before a request line (RFC 9112 section 2.2)
