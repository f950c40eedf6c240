"""What a trusted proxy's headers do to an environ, and what a client can do by way of them: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from waitress_async.errors import MalformedProxyHeader
from waitress_async.wsgi.proxy_headers import PROXY_FIELDS, ProxyHeaders

X_FORWARDED = frozenset(PROXY_FIELDS.values()) - {"forwarded"}
LINE_CHARACTERS = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)]).decode("latin-1")

# What a connection from the proxy would have in its environ.
CONNECTION = {
    "REMOTE_ADDR": "10.0.0.1",
    "REMOTE_HOST": "10.0.0.1",
    "REMOTE_PORT": "50000",
    "SERVER_NAME": "waitress.invalid",
    "SERVER_PORT": "8080",
    "wsgi.url_scheme": "http",
}


def no_warning(message: str, value: str) -> None:
    pytest.fail(f"warned: {message % value}")


def applied(fields: Mapping[str, str], *trusted: str, count: int = 1, scheme: str = "http") -> dict[str, str]:
    """The environ of a request from the proxy, with all X-Forwarded fields trusted unless told otherwise."""
    proxy_headers = ProxyHeaders(frozenset(trusted) or X_FORWARDED, count)
    return CONNECTION | {"wsgi.url_scheme": scheme} | proxy_headers.apply(fields, no_warning, scheme)


def forwarded(value: str, count: int = 1) -> dict[str, str]:
    return applied({"HTTP_HOST": "inner:81", "HTTP_FORWARDED": value}, "forwarded", count=count)


def forwarded_for(value: str, count: int = 1) -> dict[str, str]:
    return applied({"HTTP_X_FORWARDED_FOR": value}, count=count)


def client_of(environ: dict[str, str]) -> tuple[str, str]:
    assert environ["REMOTE_HOST"] == environ["REMOTE_ADDR"]
    return environ["REMOTE_ADDR"], environ["REMOTE_PORT"]


# -- nothing is told


@pytest.mark.parametrize("trusted", [X_FORWARDED, frozenset({"forwarded"}), frozenset[str]()])
def test_without_proxy_headers_the_fields_are_copied(trusted: frozenset[str]) -> None:
    fields = {"HTTP_HOST": "shop.example:81", "HTTP_ACCEPT": "*/*", "CONTENT_TYPE": "text/plain"}
    result = ProxyHeaders(trusted, 1).apply(fields, no_warning)
    assert result == fields
    assert result is not fields


@pytest.mark.parametrize("key", PROXY_FIELDS)
def test_an_empty_header_tells_nothing(key: str) -> None:
    fields = {"HTTP_HOST": "shop.example", key: ""}
    assert ProxyHeaders(frozenset({PROXY_FIELDS[key]}), 1).apply(fields, no_warning) == fields


VALUES = {
    "HTTP_FORWARDED": "for=192.0.2.1;host=shop.example;proto=https",
    "HTTP_X_FORWARDED_FOR": "192.0.2.1",
    "HTTP_X_FORWARDED_HOST": "shop.example",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_PORT": "8443",
    "HTTP_X_FORWARDED_BY": "192.0.2.9",
}


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("value", [None, 'garbage\xe9"'])
def test_what_is_not_trusted_is_not_looked_at(key: str, value: str | None) -> None:
    """It is removed before, unless it was asked to be left to the app; and then it is the app's business."""
    fields = {"HTTP_HOST": "inner", key: value or VALUES[key]}
    for trusted in [frozenset(PROXY_FIELDS.values()) - {PROXY_FIELDS[key], "forwarded"}, frozenset[str]()]:
        assert ProxyHeaders(trusted, 1).apply(fields, no_warning) == fields
    if key != "HTTP_FORWARDED":
        assert ProxyHeaders(frozenset({"forwarded"}), 1).apply(fields, no_warning) == fields


@pytest.mark.parametrize("trusted", [X_FORWARDED, frozenset({"forwarded"})])
def test_the_fields_are_not_changed(trusted: frozenset[str]) -> None:
    fields = {"HTTP_HOST": "inner", **VALUES}
    result = ProxyHeaders(trusted, 1).apply(MappingProxyType(fields), no_warning)
    assert fields == {"HTTP_HOST": "inner", **VALUES}
    assert result["HTTP_HOST"].startswith("shop.example")


# -- the client


@pytest.mark.parametrize(
    ("value", "count", "client", "kept"),
    [
        ("192.0.2.1", 1, ("192.0.2.1", ""), "192.0.2.1"),
        ("192.0.2.1:4711", 1, ("192.0.2.1", "4711"), "192.0.2.1:4711"),
        ("2001:db8::1", 1, ("2001:db8::1", ""), "2001:db8::1"),
        ("::ffff:192.0.2.1", 1, ("::ffff:192.0.2.1", ""), "::ffff:192.0.2.1"),
        ("[2001:db8::1]", 1, ("2001:db8::1", ""), "[2001:db8::1]"),
        ("[2001:db8::1]:443", 1, ("2001:db8::1", "443"), "[2001:db8::1]:443"),
        ('"[2001:db8::1]:443"', 1, ("2001:db8::1", "443"), "[2001:db8::1]:443"),
        ("unknown", 1, ("unknown", ""), "unknown"),
        ("_secret", 1, ("_secret", ""), "_secret"),
        ("198.51.100.66,192.0.2.1", 1, ("192.0.2.1", ""), "192.0.2.1"),
        ("198.51.100.66,192.0.2.1 ,\t10.0.0.2", 2, ("192.0.2.1", ""), "192.0.2.1, 10.0.0.2"),
        ("198.51.100.66, unknown, 10.0.0.2", 2, ("unknown", ""), "unknown, 10.0.0.2"),
        ("192.0.2.1, 10.0.0.2", 5, ("192.0.2.1", ""), "192.0.2.1, 10.0.0.2"),
        # What comes before the kept ones may be anything.
        ("garbage,, \xe9, 192.0.2.1", 1, ("192.0.2.1", ""), "192.0.2.1"),
        ('"198.51.100.66, 192.0.2.1', 1, ("192.0.2.1", ""), "192.0.2.1"),
    ],
)
def test_x_forwarded_for(value: str, count: int, client: tuple[str, str], kept: str) -> None:
    environ = forwarded_for(value, count)
    assert client_of(environ) == client
    assert environ["HTTP_X_FORWARDED_FOR"] == kept
    assert {key: environ[key] for key in ("SERVER_NAME", "SERVER_PORT", "wsgi.url_scheme")} == {
        "SERVER_NAME": "waitress.invalid",
        "SERVER_PORT": "8080",
        "wsgi.url_scheme": "http",
    }


@pytest.mark.parametrize(
    ("value", "count", "client", "kept"),
    [
        ("for=192.0.2.1", 1, ("192.0.2.1", ""), "for=192.0.2.1"),
        ('FOR="192.0.2.1:4711"', 1, ("192.0.2.1", "4711"), 'for="192.0.2.1:4711"'),
        ('for="[2001:db8::1]:4711"', 1, ("2001:db8::1", "4711"), 'for="[2001:db8::1]:4711"'),
        ("for=unknown", 1, ("unknown", ""), "for=unknown"),
        ('for="_Hidden:_port"', 1, ("_Hidden", ""), 'for="_Hidden:_port"'),
        ("for=198.51.100.66, for=192.0.2.1;by=_a", 1, ("192.0.2.1", ""), "for=192.0.2.1;by=_a"),
        ("for=192.0.2.1,for=10.0.0.2; by=_a", 2, ("192.0.2.1", ""), "for=192.0.2.1, for=10.0.0.2;by=_a"),
        # The first proxy says nothing of its client; the second one knows the first.
        ("for=198.51.100.66, by=_a, for=10.0.0.2", 2, ("10.0.0.2", ""), "by=_a, for=10.0.0.2"),
        # Nobody says anything of it.
        ("for=198.51.100.66, by=_a", 1, ("10.0.0.1", "50000"), "by=_a"),
        ('for=198.51.100.66;a="b,c;\\"", for=192.0.2.1', 1, ("192.0.2.1", ""), "for=192.0.2.1"),
    ],
)
def test_forwarded(value: str, count: int, client: tuple[str, str], kept: str) -> None:
    environ = forwarded(value, count)
    assert client_of(environ) == client
    assert environ["HTTP_FORWARDED"] == kept
    assert environ["HTTP_HOST"] == "inner:81"


# -- what the client connected to

# host, proto, port -> HTTP_HOST ("-" for what it was), SERVER_NAME, SERVER_PORT, scheme
TARGETS = """
    -               -       -       ->  -                   waitress.invalid    8080    http
    -               -       80      ->  -                   waitress.invalid    80      http
    -               -       8443    ->  -                   waitress.invalid    8443    http
    -               http    -       ->  -                   waitress.invalid    80      http
    -               https   -       ->  -                   waitress.invalid    443     https
    -               https   443     ->  -                   waitress.invalid    443     https
    -               https   8443    ->  -                   waitress.invalid    8443    https
    -               http    8080    ->  -                   waitress.invalid    8080    http

    shop.example    -       -       ->  shop.example        shop.example        8080    http
    shop.example    -       80      ->  shop.example        shop.example        80      http
    shop.example    -       443     ->  shop.example:443    shop.example        443     http
    shop.example    -       8443    ->  shop.example:8443   shop.example        8443    http
    shop.example    http    -       ->  shop.example        shop.example        80      http
    shop.example    http    80      ->  shop.example        shop.example        80      http
    shop.example    http    443     ->  shop.example:443    shop.example        443     http
    shop.example    http    8080    ->  shop.example:8080   shop.example        8080    http
    shop.example    https   -       ->  shop.example        shop.example        443     https
    shop.example    HTTPS   -       ->  shop.example        shop.example        443     https
    shop.example    https   80      ->  shop.example:80     shop.example        80      https
    shop.example    https   443     ->  shop.example        shop.example        443     https
    shop.example    https   00443   ->  shop.example        shop.example        443     https
    shop.example    https   8443    ->  shop.example:8443   shop.example        8443    https

    shop.example:81 -       -       ->  shop.example:81     shop.example        81      http
    shop.example:81 -       443     ->  shop.example:81     shop.example        81      http
    shop.example:81 https   -       ->  shop.example:81     shop.example        81      https
    shop.example:81 https   8443    ->  shop.example:81     shop.example        81      https
    shop.example:80 http    -       ->  shop.example:80     shop.example        80      http
    shop.example:80 https   443     ->  shop.example:80     shop.example        80      https
    shop.example:443 https  -       ->  shop.example:443    shop.example        443     https
    shop.example:   -       -       ->  shop.example        shop.example        8080    http
    shop.example:   https   -       ->  shop.example        shop.example        443     https
    shop.example:   https   8443    ->  shop.example:8443   shop.example        8443    https

    [2001:db8::1]   -       -       ->  [2001:db8::1]       [2001:db8::1]       8080    http
    [2001:db8::1]   https   -       ->  [2001:db8::1]       [2001:db8::1]       443     https
    [2001:db8::1]   https   8443    ->  [2001:db8::1]:8443  [2001:db8::1]       8443    https
    [2001:db8::1]:81 https  8443    ->  [2001:db8::1]:81    [2001:db8::1]       81      https
    192.0.2.9:81    http    -       ->  192.0.2.9:81        192.0.2.9           81      http
    Shop.Example    http    -       ->  Shop.Example        Shop.Example        80      http
"""
ROWS = [tuple(line.replace("->", "").split()) for line in TARGETS.splitlines() if line.strip()]


def target_of(environ: dict[str, str]) -> tuple[str | None, str, str, str]:
    return (
        environ.get("HTTP_HOST"),
        environ["SERVER_NAME"],
        environ["SERVER_PORT"],
        environ["wsgi.url_scheme"],
    )


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
@pytest.mark.parametrize("own", [None, "inner:81", "inner"])
def test_the_target(row: tuple[str, ...], own: str | None) -> None:
    """With and without a Host field, which has no say: it may be the proxy's name for the server."""
    host, proto, port, *expected = row
    told = {"HOST": host, "PROTO": proto, "PORT": port}
    fields = {f"HTTP_X_FORWARDED_{name}": value for name, value in told.items() if value != "-"}
    if own is not None:
        fields["HTTP_HOST"] = own
    meant = (own if expected[0] == "-" else expected[0], *expected[1:])
    assert target_of(applied(fields)) == meant
    if port == "-":
        pairs = [f'{name}="{value}"' for name, value in (("host", host), ("proto", proto)) if value != "-"]
        fields = {"HTTP_FORWARDED": ";".join([*pairs, "for=192.0.2.1"])}
        if own is not None:
            fields["HTTP_HOST"] = own
        assert target_of(applied(fields, "forwarded")) == meant


@pytest.mark.parametrize(
    ("scheme", "port", "host"),
    [
        ("http", "80", "shop.example"),
        ("http", "443", "shop.example:443"),
        ("https", "443", "shop.example"),
        ("https", "80", "shop.example:80"),
        ("gopher", "80", "shop.example:80"),
    ],
)
def test_a_port_is_measured_by_the_scheme_of_the_connection(scheme: str, port: str, host: str) -> None:
    fields = {"HTTP_X_FORWARDED_HOST": "shop.example", "HTTP_X_FORWARDED_PORT": port}
    assert target_of(applied(fields, scheme=scheme)) == (host, "shop.example", port, scheme)


@pytest.mark.parametrize(
    ("key", "value", "count", "kept"),
    [
        ("HTTP_X_FORWARDED_HOST", "evil.example, shop.example", 1, "shop.example"),
        ("HTTP_X_FORWARDED_HOST", "/,shop.example,inner:81", 2, "shop.example, inner:81"),
        ("HTTP_X_FORWARDED_HOST", '"shop.example"', 1, "shop.example"),
        ("HTTP_X_FORWARDED_PROTO", "HTTPS", 1, "https"),
        ("HTTP_X_FORWARDED_PROTO", '"https"', 1, "https"),
        ("HTTP_X_FORWARDED_PORT", '"0443"', 1, "443"),
        (
            "HTTP_X_FORWARDED_BY",
            "192.0.2.8, 2001:db8::9,proxy.example:80",
            2,
            "2001:db8::9, proxy.example:80",
        ),
        ("HTTP_X_FORWARDED_BY", "_a", 1, "_a"),
    ],
)
def test_a_header_is_rewritten_to_what_was_trusted(key: str, value: str, count: int, kept: str) -> None:
    environ = applied({key: value}, count=count)
    assert environ[key] == kept
    if key == "HTTP_X_FORWARDED_HOST":
        assert environ["HTTP_HOST"] == "shop.example"
    if key == "HTTP_X_FORWARDED_BY":
        assert environ == CONNECTION | {key: kept}


def test_of_forwarded_values_the_oldest_trusted_ones_count() -> None:
    environ = forwarded(
        "for=198.51.100.66;host=evil.example;proto=https, for=192.0.2.1;proto=https, "
        "for=10.0.0.3;host=shop.example:81, for=10.0.0.2;proto=http;host=inner;by=10.0.0.1",
        count=3,
    )
    assert client_of(environ) == ("192.0.2.1", "")
    assert target_of(environ) == ("shop.example:81", "shop.example", "81", "https")


# -- what is malformed

MALFORMED = {
    "HTTP_X_FORWARDED_FOR": [
        "localhost",
        "unix:",
        "192.0.2.1:",
        "192.0.2.256",
        "192.0.2.1:65536",
        "192.0.2.1 192.0.2.2",
        "192.0.2.1,",
        ",",
        '"192.0.2.1',
        '192.0.2.1"',
        '"192.0.2.1,192.0.2.2"',
        "192.0.2.1\xa0",
        "[192.0.2.1]",
        "[2001:db8::1",
        "<script>",
    ],
    "HTTP_X_FORWARDED_HOST": [
        "shop.example,",
        "user@shop.example",
        "shop.example/path",
        "shop.example:x",
        "shop.example:65536",
        "2001:db8::1",
        "[2001:db8::1",
        "[::g]",
        ":80",
        '""',
        '"',
        "a b",
        "sh\xf6p.example",
    ],
    "HTTP_X_FORWARDED_PROTO": [
        "https, http",
        "https,https",
        "ftp",
        "httpss",
        '"https',
        "https ",
        "\xe9",
        ",",
    ],
    "HTTP_X_FORWARDED_PORT": ["80, 80", "https", "-1", "+1", "65536", "000080", "8\xb2", '"', "80 ", "0x50"],
    "HTTP_X_FORWARDED_BY": ["10.0.0.1,", "a b", "a/b", "\xe9", '"'],
    "HTTP_FORWARDED": [
        "for",
        "for=",
        'for=""',
        "for=localhost",
        "for=2001:db8::1",
        'for="192.0.2.1',
        "for=192.0.2.1,",
        "for=192.0.2.1;for=192.0.2.1",
        "by=localhost",
        "proto=ftp",
        'proto=""',
        "host=a@b",
        'host=""',
        'host=":80"',
        'host="a, b"',
        'host="\xe9"',
        "for = 192.0.2.1",
        # Of two trusted elements the second is at fault, though the first is believed in all it says.
        "for=192.0.2.1;host=a;proto=http;by=_a, for=x",
        "for=192.0.2.1;host=a;proto=http;by=_a, by=x",
        "for=192.0.2.1;host=a;proto=http;by=_a, host=/",
        "for=192.0.2.1;host=a;proto=http;by=_a, proto=x",
    ],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in MALFORMED.items() for value in values]
)
def test_malformed(key: str, value: str) -> None:
    fields = {"HTTP_HOST": "inner", key: value}
    with pytest.raises(MalformedProxyHeader) as caught:
        applied(fields, PROXY_FIELDS[key], count=2)
    error = caught.value
    spelt = "-".join(word.capitalize() for word in PROXY_FIELDS[key].split("-"))
    assert (error.header, error.value, error.status) == (spelt, value, 400)
    assert error.fault
    assert error.detail == f'Header "{spelt}" malformed.'
    assert fields == {"HTTP_HOST": "inner", key: value}


# -- warnings


def test_unknown_parameters_of_trusted_elements_are_told_of_once() -> None:
    value = "evil=1;for=_a, for=192.0.2.1;Secret=a;b=c, for=10.0.0.2;d=e"
    warnings: list[str] = []
    result = ProxyHeaders(frozenset({"forwarded"}), 2).apply(
        {"HTTP_FORWARDED": value}, lambda message, token: warnings.append(message % token)
    )
    assert len(warnings) == 1
    assert warnings[0] in {f"Unknown Forwarded token: {token}" for token in ("secret", "b", "d")}
    assert result["HTTP_FORWARDED"] == "for=192.0.2.1;secret=a;b=c, for=10.0.0.2;d=e"


def test_unknown_parameters_that_are_not_trusted_are_not_told_of() -> None:
    assert client_of(forwarded("evil=1, for=192.0.2.1")) == ("192.0.2.1", "")


# -- whatever a client sends

hostile = (
    st.text(LINE_CHARACTERS) | st.text('for=host";\\, []:1.6_x') | st.sampled_from(['"', 'x="', 'x="\\'])
)
commas = st.sampled_from([",", ", "])
clients = st.one_of(
    st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map("[{}]".format), st.just("unknown"), st.just("_a")
)
ports = st.just("") | st.integers(0, 65535).map(":{}".format)
# With all that a Host field allows, and a proxy may pass on in quotes.
hosts = st.text("abc.-,;=()'", min_size=1, max_size=20)


@given(hostile, commas, clients, ports)
def test_x_forwarded_for_cannot_be_spoofed(prefix: str, comma: str, client: str, port: str) -> None:
    environ = forwarded_for(prefix + comma + client + port)
    assert client_of(environ) == (client.strip("[]"), port[1:])
    assert environ["HTTP_X_FORWARDED_FOR"] == client + port


@given(hostile, commas, clients, ports, hosts, st.booleans())
@example('for="198.51.100.66', ", ", "192.0.2.1", "", "shop.example", False)
@example('x="', ", ", "192.0.2.1", "", ",for=198.51.100.66;x=", True)
@example('x="', ", ", "[2001:db8::1]", ":80", ";for=198.51.100.66", True)
def test_forwarded_cannot_be_spoofed(
    prefix: str, comma: str, client: str, port: str, host: str, escaped: bool
) -> None:
    host_pair = f'host="{host}"' if not escaped else f'host="\\{host}"'
    try:
        environ = forwarded(f'{prefix}{comma}proto=https;for="{client}{port}";{host_pair}')
    except MalformedProxyHeader:
        return
    assert client_of(environ) == (client.strip("[]"), port[1:])
    assert target_of(environ) == (host, host, "443", "https")


@given(clients, ports, commas, hosts)
def test_a_quote_left_open_is_refused(client: str, port: str, comma: str, host: str) -> None:
    with pytest.raises(MalformedProxyHeader):
        forwarded(f'for="198.51.100.66{comma}for="{client}{port}";host="{host}"')


@given(clients, ports, st.sampled_from(["", "for=198.51.100.66, ", "for=_;proto=x,", 'a=",;\\"", ,']))
def test_well_formed_lies_change_nothing(client: str, port: str, prefix: str) -> None:
    environ = forwarded(f'{prefix}for="{client}{port}"')
    assert client_of(environ) == (client.strip("[]"), port[1:])


values = (
    st.text(LINE_CHARACTERS) | st.text('for=host";\\, []:1.6_x') | st.sampled_from([*VALUES.values(), ""])
)


@given(
    st.dictionaries(st.sampled_from([*PROXY_FIELDS, "HTTP_HOST", "HTTP_COOKIE"]), values),
    st.just(frozenset({"forwarded"})) | st.frozensets(st.sampled_from(sorted(X_FORWARDED))),
    st.integers(1, 3),
)
def test_any_fields_are_understood_or_refused(
    fields: dict[str, str], trusted: frozenset[str], count: int
) -> None:
    before = dict(fields)
    proxy_headers = ProxyHeaders(trusted, count)
    refused = ""
    try:
        result = proxy_headers.apply(fields, lambda *_: None)
    except MalformedProxyHeader as error:
        refused = error.header
    assert fields == before
    if refused:
        assert refused.lower() in trusted
        return
    told = {"REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT", "SERVER_NAME", "SERVER_PORT", "wsgi.url_scheme"}
    believed = {key for key, name in PROXY_FIELDS.items() if name in trusted}
    assert result.keys() >= fields.keys() >= result.keys() - told - {"HTTP_HOST"}
    assert all(result[key] == fields[key] for key in fields.keys() - believed - {"HTTP_HOST"})
    assert proxy_headers.apply(result, lambda *_: None) == result, "what was rewritten says the same"
