"""Which peers are meant: addresses, networks, unix sockets, or everybody."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self

# The REMOTE_ADDR of a peer on a unix socket, as waitress has it.
UNIX_PEER: Final = "localhost"

_MAPPED: Final = IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Peers:
    """A set of peers. `address in peers` is for any thread, and never asks the name service."""

    everybody: bool
    unix: bool
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """`entries` are addresses, networks (10.0.0.0/8), `*` for everybody and `localhost` for unix sockets.

        Raises ValueError for anything else, for a network with bits beside its prefix, and for an address
        with a zone, for REMOTE_ADDR has none.
        """
        words = set(entries)
        return cls(
            everybody="*" in words,
            unix=UNIX_PEER in words,
            networks=tuple(_network(word) for word in sorted(words - {"*", UNIX_PEER})),
        )

    def __contains__(self, address: str) -> bool:
        """Whether a peer of this REMOTE_ADDR is one of them. A mapped IPv4 address is the IPv4 one."""
        if self.everybody:
            return True
        if address == UNIX_PEER:
            return self.unix
        if not self.networks:
            return False
        try:
            found = _address(address)
        except ValueError:
            return False
        return any(found in network for network in self.networks)

    def __bool__(self) -> bool:
        return self.everybody or self.unix or bool(self.networks)


def _network(text: str) -> IPv4Network | IPv6Network:
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, and peers are compared without one")
    try:
        network = ip_network(text)
    except ValueError as error:
        reason = str(error) if "host bits" in str(error) else f"{text!r} is not an address or a network"
        raise ValueError(f"{reason}; nor is it * or {UNIX_PEER}") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((int(mapped or 0), network.prefixlen - 96))
    return network


@lru_cache(maxsize=4_096)  # the peers of a server come again
def _address(text: str) -> object:
    address = ip_address(text.partition("%")[0])
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
