"""What proxies tell of a request: the Forwarded field (RFC 7239) and the lists of the X-Forwarded fields.

Each proxy appends to what it was sent, so only the right end of a value can be trusted: `count` entries
of it, one for each trusted proxy. What is before them may be anything that a client thought of.

A Forwarded value is judged whole and from its left end, so that nothing appended to it can be swallowed
by a quote that a client left open. The proxy's part would then be read the wrong way round: what it has
outside of quotes inside, and the other way. As its quotes are an even number, the last string has
no end; as escapes are nowhere but in quotes, one of them would be where none can be. Both are malformed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv6Address
from typing import Final, NamedTuple

from waitress_async.errors import MalformedProxyHeader
from waitress_async.http import grammar

# What one proxy tells: parameter names in lower case -> values without quotes, in the order they came.
Element = dict[str, str]

# Characters. The pieces of a value are looked at one by one, and an honest one holds a few hundred.
MAX_FORWARDED: Final = 8_192

_OWS: Final = r"[ \t]*+"
_TOKEN: Final = grammar.TOKEN.pattern.decode("ascii")
_QUOTED_STRING: Final = grammar.QUOTED_STRING.pattern.decode("ascii")

# More than RFC 7239 section 4 allows, for proxies are configured so, and it can be read in one way only:
# "host:port" and "[v6]" without quotes, white space around ";".
_VALUE: Final = rf"(?:(?:{_TOKEN}|[:\[\]])++|{_QUOTED_STRING})"
_PAIR: Final = rf"(?:{_TOKEN}={_VALUE})?+"
_ELEMENT: Final = rf"{_OWS}{_PAIR}{_OWS}(?:;{_OWS}{_PAIR}{_OWS})*+"

_FORWARDED: Final = re.compile(rf"{_ELEMENT}(?:,{_ELEMENT})*+")
_NEXT_ELEMENT: Final = re.compile(rf"(?:\A|,)({_ELEMENT})")
_NEXT_PAIR: Final = re.compile(rf"({_TOKEN})=({_VALUE})")

_WHOLE_TOKEN: Final = re.compile(_TOKEN)
_WHOLE_QUOTED_STRING: Final = re.compile(_QUOTED_STRING)
_ESCAPED: Final = re.compile(r"\\(.)")
_TO_ESCAPE: Final = re.compile(r'["\\]')

# RFC 7239 section 6. A zone (RFC 4007 section 11) is none of it, but proxies pass on what accept() told them.
_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_IPV6: Final = r"[0-9A-Fa-f:.]{2,45}+(?:%[A-Za-z0-9._~\-]{1,64}+)?+"
_OBFUSCATED: Final = r"_[A-Za-z0-9._\-]++"
_NODE: Final = re.compile(
    rf"(?:({_IPV4}|(?ai:unknown)|{_OBFUSCATED})|\[({_IPV6})\])(?::(?:([0-9]{{1,5}}+)|{_OBFUSCATED}))?+"
)
_BARE_IPV6: Final = re.compile(_IPV6)


class Node(NamedTuple):
    """Who took part in a connection."""

    name: (
        str  # an address, without brackets; or `unknown`; or an obfuscated identifier, which begins with "_"
    )
    port: str  # decimal; "" if none is told, or an obfuscated one


def parse_forwarded(value: str, count: int) -> list[Element]:
    """The last `count` elements of a Forwarded value, a latin-1 string; fewer if there are no more.

    Their values are not judged here. Raises MalformedProxyHeader if any part of the value breaks the
    grammar of RFC 7239 section 4, or if one of these elements is empty or has a parameter twice. RFC 9110
    section 5.6.1.2 would have empty elements ignored; but then one more, from further to the left, would
    be taken for a trusted proxy's.
    """
    if len(value) > MAX_FORWARDED:
        raise MalformedProxyHeader("Forwarded", f"more than {MAX_FORWARDED} characters", value)
    if not _FORWARDED.fullmatch(value):
        raise MalformedProxyHeader("Forwarded", "not a list of name=value pairs", value)
    elements = []
    for text in _NEXT_ELEMENT.findall(value)[-count:]:
        pairs = _NEXT_PAIR.findall(text)
        element = {name.lower(): unquote(told) for name, told in pairs}
        if not element:
            raise MalformedProxyHeader("Forwarded", "an element is empty", value)
        if len(element) < len(pairs):
            raise MalformedProxyHeader("Forwarded", "a parameter occurs twice in an element", value)
        elements.append(element)
    return elements


def format_forwarded(elements: Iterable[Element]) -> str:
    """A Forwarded value that `parse_forwarded` reads as these elements, quoted where it must be."""
    return ", ".join(
        ";".join(f"{name}={_quote(value)}" for name, value in element.items()) for element in elements
    )


def last_entries(value: str, count: int) -> list[str]:
    """The last `count` entries of an X-Forwarded list, without white space and quotes around them.

    What these fields may hold has no comma in it, not even in quotes, so every comma ends an entry. An
    entry that is empty or wrongly quoted is given as it is: it will be none of those things.
    """
    return [unquote(entry.strip(" \t")) for entry in value.rsplit(",", count)[-count:]]


def unquote(text: str) -> str:
    """The content of a quoted string (RFC 9110 section 5.6.4), or else the text itself."""
    if text[:1] != '"' or not _WHOLE_QUOTED_STRING.fullmatch(text):
        return text
    return _ESCAPED.sub(r"\1", text[1:-1])


def parse_node(text: str) -> Node | None:
    """A node as RFC 7239 section 6 has it, with IPv6 in brackets; None if it is none."""
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    name, literal, port = match.groups("")
    if (literal and not _is_ipv6(literal)) or (port and int(port) > 65535):
        return None
    return Node(name or literal, port)


def parse_address(text: str) -> Node | None:
    """A node as X-Forwarded-For has it, where IPv6 often comes bare; None if it is none."""
    node = parse_node(text)
    if node is None and _BARE_IPV6.fullmatch(text) and _is_ipv6(text):
        return Node(text, "")
    return node


def _quote(value: str) -> str:
    if _WHOLE_TOKEN.fullmatch(value):
        return value
    return '"' + _TO_ESCAPE.sub(r"\\\g<0>", value) + '"'


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True
