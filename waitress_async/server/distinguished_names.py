"""Distinguished names, such as a certificate's subject, as text of RFC 2253. Any thread."""

from __future__ import annotations

import re
from typing import Final

# What OpenSSL writes, in RFC 2253's footsteps, where `ssl` has another name.
_SHORT_NAMES: Final = {
    "commonName": "CN",
    "countryCode3c": "c3",
    "countryCode3n": "n3",
    "countryName": "C",
    "domainComponent": "DC",
    "givenName": "GN",
    "jurisdictionCountryName": "jurisdictionC",
    "jurisdictionLocalityName": "jurisdictionL",
    "jurisdictionStateOrProvinceName": "jurisdictionST",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "rfc822Mailbox": "mail",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "surname": "SN",
    "uniqueIdentifier": "uid",
    "userId": "UID",
}

_SPECIAL: Final = re.compile(r'[,+"\\<>;]|[^ -~]|\A[ #]| \Z')

_BIT_STRING: Final = 3
_UTF8_STRING: Final = 12


def name_text(names: tuple[tuple[tuple[str, str | bytes], ...], ...]) -> str:
    """A name as `getpeercert()` has it, as text: from its last part to its first, in printable ASCII."""
    return ",".join("+".join(_attribute_text(*pair) for pair in reversed(name)) for name in reversed(names))


def _attribute_text(kind: str, value: str | bytes) -> str:
    kind = _SPECIAL.sub(_escape, _SHORT_NAMES.get(kind, kind))
    if isinstance(value, bytes):  # a string of bits, as many as there is room for
        return f"{kind}=#{_der(_BIT_STRING, bytes(1) + value)}"
    if kind[0].isdigit():  # section 2.4: what has no name is encoded; how it was, `ssl` does not tell
        return f"{kind}=#{_der(_UTF8_STRING, value.encode())}"
    return f"{kind}={_SPECIAL.sub(_escape, value)}"


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if " " <= character <= "~":
        return "\\" + character
    return "".join(f"\\{byte:02X}" for byte in character.encode())


def _der(tag: int, content: bytes) -> str:
    """Hexadecimal of an encoded value (X.690 section 8.1)."""
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8 or 1)
    if size >= 0x80:
        length = bytes([0x80 | len(length)]) + length
    return (bytes([tag]) + length + content).hex().upper()
