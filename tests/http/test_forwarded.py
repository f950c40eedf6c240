"""The grammar of what proxies append: Forwarded (RFC 7239) and the X-Forwarded lists."""

from __future__ import annotations

import string
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from waitress_async.errors import MalformedProxyHeader
from waitress_async.http.forwarded import (
    MAX_FORWARDED,
    Element,
    Node,
    format_forwarded,
    last_entries,
    parse_address,
    parse_forwarded,
    parse_node,
    unquote,
)

ALL = 1_000

TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters
LINE_CHARACTERS = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)]).decode("latin-1")

# -- Forwarded, from what it means to its text


names = st.text("!#$%&'*+-.^_`|~" + string.digits + string.ascii_lowercase, min_size=1, max_size=6)
elements = st.dictionaries(names, st.text(LINE_CHARACTERS, max_size=10), min_size=1, max_size=4)


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def written(draw: st.DrawFn, element: Element) -> str:
    """An element in any of its spellings."""
    white_space = st.text(" \t", max_size=2)
    separators = st.builds("{}{}{}".format, white_space, st.sampled_from([";", ";", ";;"]), white_space)
    text = draw(st.sampled_from(["", ";"]))
    for number, (name, value) in enumerate(element.items()):
        text += draw(separators) if number else ""
        text += name.upper() if draw(st.booleans()) else name
        bare = value and set(value) <= set(TOKEN_CHARACTERS) and draw(st.booleans())
        text += "=" + (value if bare else quoted(value))
    text += draw(st.sampled_from(["", ";"]))
    return draw(white_space) + text + draw(white_space)


@given(st.data(), st.lists(elements, min_size=1, max_size=5), st.integers(1, 6))
def test_every_spelling_is_read(data: st.DataObject, meant: list[Element], count: int) -> None:
    value = ",".join(data.draw(written(element)) for element in meant)
    assert parse_forwarded(value, count) == meant[-count:]


@given(st.lists(elements, min_size=1, max_size=5))
def test_what_is_formatted_is_read_again(meant: list[Element]) -> None:
    assert parse_forwarded(format_forwarded(meant), ALL) == meant


@given(st.text(LINE_CHARACTERS) | st.text('for=";\\, []:1a'), st.integers(1, 3))
def test_any_text_is_read_or_refused(value: str, count: int) -> None:
    try:
        read = parse_forwarded(value, count)
    except MalformedProxyHeader:
        return
    assert 1 <= len(read) <= count
    assert all(read)
    assert parse_forwarded(format_forwarded(read), count) == read


@given(
    st.text(LINE_CHARACTERS) | st.text('for=";\\, []:1a'),
    st.sampled_from([",", ", "]),
    st.lists(elements, min_size=1, max_size=3),
    st.data(),
)
@example('for="198.51.100.66', ", ", [{"for": "192.0.2.1"}], None)
@example('for="a', ", ", [{"for": "[2001:db8::1]"}], None)
@example('a="', ", ", [{"for": "192.0.2.1", "host": ",for=198.51.100.66"}], None)
@example('a="', ", ", [{"for": "192.0.2.1", "host": ';b="'}], None)
@example('a="\\', ",", [{"for": "[2001:db8::1]:1"}], None)
@example('a="', ", ", [{"for": "192.0.2.1", "host": 'x"', "b": '"y'}], None)
def test_nothing_swallows_what_is_appended(
    prefix: str, comma: str, appended: list[Element], data: st.DataObject | None
) -> None:
    """Whatever a client sends, the elements of trusted proxies are found at the end, or nothing is."""
    ending = (
        format_forwarded(appended)
        if data is None
        else comma.join(data.draw(written(element)) for element in appended)
    )
    try:
        assert parse_forwarded(prefix + comma + ending, len(appended)) == appended
    except MalformedProxyHeader:
        pass


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("for=192.0.2.43", [{"for": "192.0.2.43"}]),
        ('For="[2001:db8:cafe::17]:4711"', [{"for": "[2001:db8:cafe::17]:4711"}]),
        (
            "for=192.0.2.60;proto=http;by=203.0.113.43",
            [{"for": "192.0.2.60", "proto": "http", "by": "203.0.113.43"}],
        ),
        ("for=192.0.2.43, for=198.51.100.17", [{"for": "192.0.2.43"}, {"for": "198.51.100.17"}]),
        (
            "for=192.0.2.43,for=unknown\t, \tfor=_x",
            [{"for": "192.0.2.43"}, {"for": "unknown"}, {"for": "_x"}],
        ),
        ('a="x,y;for=z",for=b', [{"a": "x,y;for=z"}, {"for": "b"}]),
        (r'a="\"\\\,";b=c', [{"a": '"\\,', "b": "c"}]),
        ('a=""', [{"a": ""}]),
        ('a="\xe9"', [{"a": "\xe9"}]),
        (";a=b;;c=d;", [{"a": "b", "c": "d"}]),
        # Beyond the grammar.
        ("for=192.0.2.1; proto=https ;by=_a", [{"for": "192.0.2.1", "proto": "https", "by": "_a"}]),
        ("host=shop.example:8080", [{"host": "shop.example:8080"}]),
        ("for=[2001:db8::1]:80", [{"for": "[2001:db8::1]:80"}]),
    ],
)
def test_forwarded(value: str, meant: list[Element]) -> None:
    assert parse_forwarded(value, ALL) == meant


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        ";",
        ",",
        "a",
        "a=",
        "=a",
        "a=b=c",
        "a =b",
        "a= b",
        "a=b c=d",
        "a=b\xe9",
        "\xe9=b",
        "a=\xa0b",
        "a=b\x0b",
        "a=b\n",
        'a="\n"',
        'a="b',
        'a=b"',
        'a="b"c',
        'a="b" "c"',
        r'a="b\"',
        r"a=\b",
        "a=b;a=c",
        "a=b;A=c",
        "a=b,",
        ",a=b",
        "a=b,,c=d",
        "a=b,;,c=d",
        "a=(b)",
        "a=b/c",
    ],
)
def test_malformed(value: str) -> None:
    with pytest.raises(MalformedProxyHeader) as caught:
        parse_forwarded(value, ALL)
    assert (caught.value.header, caught.value.value) == ("Forwarded", value)
    assert caught.value.fault


@pytest.mark.parametrize(
    ("left", "refused"),
    [
        # What means nothing may mean nothing ...
        ('for=anything;host="/";proto=gopher', False),
        ("a=b;a=c", False),
        ("", False),
        (",,", False),
        # ... but where an element ends must be sure.
        ("for=", True),
        ("garbage", True),
        ('for="a', True),
        ('for=a"', True),
        ('for="a"b', True),
        ("for=\xe9", True),
    ],
)
def test_what_is_left_of_the_trusted_elements(left: str, refused: bool) -> None:
    value = left + ", for=192.0.2.1"
    if refused:
        with pytest.raises(MalformedProxyHeader):
            parse_forwarded(value, 1)
    else:
        assert parse_forwarded(value, 1) == [{"for": "192.0.2.1"}]


def test_the_length_is_bounded() -> None:
    ending = ", for=192.0.2.1"
    longest = "," * (MAX_FORWARDED - len(ending)) + ending
    assert parse_forwarded(longest, 1) == [{"for": "192.0.2.1"}]
    with pytest.raises(MalformedProxyHeader, match="malformed") as caught:
        parse_forwarded("," + longest, 1)
    assert str(MAX_FORWARDED) in caught.value.fault


@pytest.mark.parametrize(
    ("element", "text"),
    [
        ({"for": "192.0.2.1", "proto": "https"}, "for=192.0.2.1;proto=https"),
        ({"for": "[2001:db8::1]:80"}, 'for="[2001:db8::1]:80"'),
        ({"a": ""}, 'a=""'),
        ({"a": '"\\'}, r'a="\"\\"'),
    ],
)
def test_quotes_where_they_must_be(element: Element, text: str) -> None:
    assert format_forwarded([element, element]) == f"{text}, {text}"


# -- nodes


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("192.0.2.1", Node("192.0.2.1", "")),
        ("255.249.199.0", Node("255.249.199.0", "")),
        ("192.0.2.1:80", Node("192.0.2.1", "80")),
        ("192.0.2.1:65535", Node("192.0.2.1", "65535")),
        ("192.0.2.1:_p", Node("192.0.2.1", "")),
        ("[2001:db8::1]", Node("2001:db8::1", "")),
        ("[2001:DB8::1]:80", Node("2001:DB8::1", "80")),
        ("[::ffff:192.0.2.1]", Node("::ffff:192.0.2.1", "")),
        ("[fe80::1%eth0]:80", Node("fe80::1%eth0", "80")),
        ("[::1]:_-.x", Node("::1", "")),
        ("unknown", Node("unknown", "")),
        ("Unknown:80", Node("Unknown", "80")),
        ("_gazonk", Node("_gazonk", "")),
        ("_SEVKISEK.-_:80", Node("_SEVKISEK.-_", "80")),
    ],
)
def test_node(text: str, node: Node) -> None:
    assert parse_node(text) == node
    assert parse_address(text) == node


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 192.0.2.1",
        "192.0.2.1 ",
        "192.0.2",
        "192.0.2.256",
        "192.0.2.1.1",
        "192.0.02.1",
        "192.0.2.1/24",
        "192.0.2.\xb2",
        "\u0661.2.3.4",
        "3221225985",
        "192.0.2.1:",
        "192.0.2.1:x",
        "192.0.2.1:_",
        "192.0.2.1:65536",
        "192.0.2.1:000080",
        "192.0.2.1:80:80",
        "[192.0.2.1]",
        "[]",
        "[:]",
        "[:::]",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::1]80",
        "[2001:db8::1]:",
        "[2001:db8::1]:65536",
        "[2001:db8::12345]",
        "[1:2:3:4:5:6:7:8:9]",
        "[fe80::1%]",
        "[fe80::1%a%b]",
        "[fe80::1%\xe9]",
        "[[2001:db8::1]]",
        "unknowns",
        "_",
        "_a b",
        "_\xe9",
        "_a/b",
        "localhost",
        "shop.example",
        '"192.0.2.1"',
        "192.0.2.1, 192.0.2.2",
    ],
)
def test_no_node(text: str) -> None:
    assert parse_node(text) is None
    assert parse_address(text) is None


@pytest.mark.parametrize("text", ["2001:db8::1", "::", "::ffff:192.0.2.1", "1:2:3:4:5:6:7:8", "fe80::1%eth0"])
def test_bare_ipv6_is_an_address_but_no_node(text: str) -> None:
    assert parse_address(text) == Node(text, "")
    assert parse_node(text) is None


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_address_is_read(address: IPv4Address | IPv6Address, port: int) -> None:
    literal = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    assert parse_node(literal) == parse_address(str(address)) == Node(str(address), "")
    assert parse_node(f"{literal}:{port}") == Node(str(address), str(port))


# -- lists


@pytest.mark.parametrize(
    ("value", "count", "entries"),
    [
        ("a", 1, ["a"]),
        ("a", 3, ["a"]),
        ("a,b, c", 1, ["c"]),
        ("a,b \t, \tc", 2, ["b", "c"]),
        ('a, "b:1" ,"c"', 2, ["b:1", "c"]),
        ('"a,b"', 1, ['b"']),
        ('"a, b', 1, ["b"]),
        ('a, "', 1, ['"']),
        (r'"a\"b"', 1, ['a"b']),
        ("a,", 1, [""]),
        (",,a", 2, ["", "a"]),
        ("", 1, [""]),
        ("a, \xa0b\x85", 1, ["\xa0b\x85"]),
    ],
)
def test_last_entries(value: str, count: int, entries: list[str]) -> None:
    assert last_entries(value, count) == entries


@given(st.text(LINE_CHARACTERS))
def test_only_a_whole_quoted_string_is_unquoted(content: str) -> None:
    assert unquote(quoted(content)) == content
    assert unquote(quoted(content) + "x") == quoted(content) + "x"
    assert unquote("x" + quoted(content)) == "x" + quoted(content)
