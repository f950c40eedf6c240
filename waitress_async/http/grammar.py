"""The grammar of RFC 9110, 9112 and 3986 that a server needs, as compiled patterns over bytes.

Every pattern is used with `fullmatch` and is linear in its input: quantifiers that could give back
what they took are possessive (`++`, `*+`).
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Final

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_OWS: Final = rb"[ \t]*+"

TOKEN: Final = re.compile(_TOKEN)

# RFC 9112 section 3. The target is any run of visible ASCII here; its form is judged apart.
REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]++) (HTTP/[0-9]\.[0-9])")

# The same for a target that is a path without escapes, and a query perhaps, over text: most are.
PLAIN_REQUEST_LINE: Final = re.compile(
    r"(" + _TOKEN.decode() + r""") (/[!"$&->@-~]*+)(?:\?([!"$-~]*+))?+ HTTP/1\.([01])"""
)

# RFC 9110 section 5.5: VCHAR, obs-text, SP and HTAB. White space around the value is trimmed by the caller.
FIELD_LINE: Final = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*+)")

# RFC 9110 section 8.6, bounded: 19 digits hold every length below 10 EB.
CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,19}+")

# RFC 9110 section 5.6.4.
QUOTED_STRING: Final = re.compile(
    rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]++|\\[\t\x20-\x7e\x80-\xff])*+"'
)

# RFC 9112 section 7.1. Extensions are validated and thrown away.
CHUNK_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16}+)((?:"
    + (_OWS + rb";" + _OWS + _TOKEN)
    + (rb"(?:" + _OWS + rb"=" + _OWS + rb"(?:" + _TOKEN + rb"|" + QUOTED_STRING.pattern + rb"))?+")
    + rb")*+)"
)

# RFC 3986 section 3.2: reg-name or IPv4 address, or an IP literal in brackets, and a port.
_AUTHORITY: Final = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]++)\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*+)(?::([0-9]{0,5}+))?+"
)

# RFC 9112 section 3.2.2: the absolute form, for the two schemes whose resources we can have.
ABSOLUTE_TARGET: Final = re.compile(rb"https?://([^/?#]*+)([^#]*+)", re.IGNORECASE)


def is_authority(value: bytes) -> bool:
    """Whether `value` is `host [":" port]` as RFC 9110 section 7.2 has it for Host, which may be empty."""
    match = _AUTHORITY.fullmatch(value)
    if match is None:
        return False
    literal, port = match.groups()
    if literal is not None:
        try:
            IPv6Address(literal.decode("ascii"))
        except AddressValueError:
            return False
    return not port or int(port) <= 65535
