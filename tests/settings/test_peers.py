from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitress_async.errors import SettingsError
from waitress_async.settings import UNIX_PEER, Peers, Settings


@pytest.mark.parametrize(
    ("entries", "members", "others"),
    [
        ((), [], ["127.0.0.1", "::1", "localhost", ""]),
        (("*",), ["127.0.0.1", "::1", "localhost", ""], []),
        (("localhost",), ["localhost"], ["127.0.0.1", "::1", "", "LOCALHOST"]),
        (("10.0.0.1",), ["10.0.0.1", "::ffff:10.0.0.1", "::FFFF:a00:1"], ["10.0.0.2", "::10.0.0.1"]),
        (("10.0.0.1",), [], ["10.0.0.1.", "10.0.0.1/32", "010.0.0.1", " 10.0.0.1", "10.0.0.1:80"]),
        (("10.0.0.0/8", "::1"), ["10.0.0.0", "10.255.255.255", "0:0:0:0:0:0:0:1"], ["11.0.0.0", "::2"]),
        (("::ffff:10.0.0.0/104",), ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.0", "::10.1.2.3"]),
        (("10.0.0.0/255.0.0.0",), ["10.1.2.3"], ["11.0.0.0"]),
        (("fe80::/10",), ["fe80::1", "fe80::1%eth0"], ["fec0::1"]),
        (("0.0.0.0/0",), ["8.8.8.8", "::ffff:8.8.8.8"], ["::1", "localhost", "unknown"]),
        (("::/0",), ["::1"], ["8.8.8.8", "localhost"]),
    ],
)  # fmt: skip
def test_members(entries: tuple[str, ...], members: list[str], others: list[str]) -> None:
    peers = Peers.parse(entries)
    assert [address for address in members if address not in peers] == []
    assert [address for address in others if address in peers] == []
    assert bool(peers) is bool(entries)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("10.0.0.1/8", "10.0.0.1/8 has host bits set; nor is it * or localhost"),
        ("proxy.example", "'proxy.example' is not an address or a network; nor is it * or localhost"),
        ("10.0.0.0/33", "'10.0.0.0/33' is not an address or a network; nor is it * or localhost"),
        ("10.0.0", "'10.0.0' is not an address or a network; nor is it * or localhost"),
        ("[::1]", "'[::1]' is not an address or a network; nor is it * or localhost"),
        ("::1:80000", "'::1:80000' is not an address or a network; nor is it * or localhost"),
        ("/8", "'/8' is not an address or a network; nor is it * or localhost"),
        ("fe80::1%eth0", "'fe80::1%eth0' has a zone, and peers are compared without one"),
    ],
)
def test_what_is_no_peer(entry: str, reason: str) -> None:
    for name in ("trusted_proxy", "proxy_protocol_from"):
        with pytest.raises(SettingsError) as raised:
            Settings.from_keywords(**{name: ["::1", entry]})
        assert str(raised.value) == f"{name}: {reason}"


@given(address=st.ip_addresses(v=4), prefix=st.integers(0, 32), peer=st.ip_addresses(v=4))
def test_networks_of_ipv4_and_mapped_addresses(address: IPv4Address, prefix: int, peer: IPv4Address) -> None:
    network = ip_network((int(address), prefix), strict=False)
    for entry in (str(network), f"::ffff:{network.network_address}/{prefix + 96}"):
        peers = Peers.parse([entry])
        assert (str(peer) in peers) is (peer in network)
        assert (f"::ffff:{peer}" in peers) is (peer in network)
        assert str(address) in peers


@given(address=st.ip_addresses(v=6), prefix=st.integers(0, 128), peer=st.ip_addresses(v=6))
def test_networks_of_ipv6(address: IPv6Address, prefix: int, peer: IPv6Address) -> None:
    network = ip_network((int(address), prefix), strict=False)
    if peer.ipv4_mapped is None:
        assert (str(peer) in Peers.parse([str(network)])) is (peer in network)


@given(text=st.text(max_size=20), entries=st.sets(st.sampled_from(["localhost", "10.0.0.0/8", "::1"])))
def test_any_text_may_be_asked_for(text: str, entries: set[str]) -> None:
    """It comes from a proxy's header. Whoever is not sure to be a member is none."""
    if text in Peers.parse(entries) and text != UNIX_PEER:
        ip_address(text.partition("%")[0])


def test_a_setting_is_checked_and_kept_as_it_is_written() -> None:
    settings = Settings.from_keywords(trusted_proxy="10.0.0.0/8 ::FFFF:10.0.0.1,localhost")
    assert settings.trusted_proxy == ("10.0.0.0/8", "::FFFF:10.0.0.1", "localhost")
