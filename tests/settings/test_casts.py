from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.settings.samples import ALL, BY_NAME
from waitress_async.errors import SettingsError
from waitress_async.settings import Settings
from waitress_async.settings.casts import UNITS, expand_units, in_bytes

SIZE = BY_NAME["max_request_body_size"]
TIME = BY_NAME["channel_timeout"]

# What each unit is, in that of its settings.
FACTORS: dict[str, dict[str, int | Fraction]] = {
    "bytes": {
        "B": 1, "byte": 1, "bytes": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
        "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    },
    "seconds": {
        "ms": Fraction(1, 1000), "s": 1, "sec": 1, "second": 1, "seconds": 1,
        "m": 60, "min": 60, "minute": 60, "minutes": 60,
        "h": 3600, "hour": 3600, "hours": 3600, "d": 86_400, "day": 86_400, "days": 86_400,
    },
}  # fmt: skip


@pytest.mark.parametrize("text", ["four", "", "4.5", "0x10", "1e3", None, 4.5, float("inf"), b"4"])
def test_what_is_not_a_whole_number(text: object) -> None:
    with pytest.raises(SettingsError, match=f"^threads: {re.escape(repr(text))} is not a whole number$"):
        Settings.from_keywords(threads=text)


def test_more_digits_than_python_reads() -> None:
    with pytest.raises(SettingsError, match=r"^threads: '9*' is not a whole number$"):
        Settings.from_keywords(threads="9" * 5000)


@pytest.mark.parametrize(
    "text", ["soon", "", "nan", "inf", "-inf", float("inf"), float("nan"), 10**400, None]
)
def test_what_is_not_a_number(text: object) -> None:
    with pytest.raises(SettingsError, match=r"^channel_timeout: .* is not a number$"):
        Settings.from_keywords(channel_timeout=text)


@pytest.mark.parametrize("text", ["maybe", "2", 2, 1.0, [], "truee"])
def test_neither_true_nor_false(text: object) -> None:
    with pytest.raises(SettingsError, match=f"^ipv6: {re.escape(repr(text))} is neither true nor false$"):
        Settings.from_keywords(ipv6=text)


@pytest.mark.parametrize("nothing", ["", None])
@pytest.mark.parametrize("name", ["ident", "unix_socket", "tmp_dir", "spare_threads", "trusted_proxy_count"])
def test_nothing(name: str, nothing: str | None) -> None:
    assert getattr(Settings.from_keywords(**{name: nothing}), name) is None


def test_paths_may_be_objects() -> None:
    settings = Settings.from_keywords(tmp_dir=Path("/var/tmp"), unix_socket=Path("/run/app"))
    assert (settings.tmp_dir, settings.unix_socket) == ("/var/tmp", "/run/app")


@pytest.mark.parametrize("value", ["a b\n c", ["a", "b", "c"], ("a b", "c"), ["a\tb c"]])
def test_lists(value: object) -> None:
    assert Settings.from_keywords(listen=value).listen == ("a", "b", "c")


@pytest.mark.parametrize("value", ["::1 *", "::1,*", " ::1 , * ", ["::1", "*"], ("::1,*",)])
def test_addresses_may_have_commas_between(value: object) -> None:
    assert Settings.from_keywords(trusted_proxy=value).trusted_proxy == ("::1", "*")


@pytest.mark.parametrize(
    "value", ["x-forwarded-for, x-forwarded-proto", ["x-forwarded-for,x-forwarded-proto"]]
)
def test_headers_may_have_commas_between(value: object) -> None:
    settings = Settings.from_keywords(trusted_proxy="*", trusted_proxy_headers=value)
    assert settings.trusted_proxy_headers == ("x-forwarded-for", "x-forwarded-proto")


@pytest.mark.parametrize("value", [None, 5, b"a", ["a", 5], [["a"]], {"a": "b"}])
def test_what_is_not_a_list_of_strings(value: object) -> None:
    with pytest.raises(SettingsError, match=r"^listen: .* is not a (list of strings|string)$"):
        Settings.from_keywords(listen=value)


# Units.


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("512KiB", 524_288),
        ("1.5 MiB", 1_572_864),
        ("10 MB", 10_000_000),
        ("10mb", 10_000_000),
        (" 1 gib ", 1_073_741_824),
        ("1.001 KB", 1001),
        ("1.1 MB", 1_100_000),
        ("9007199254740993 B", 9_007_199_254_740_993),
        ("1 MiB 512 KiB", 1_572_864),
        ("1.0000 b", 1),
        ("8192", 8192),
        (8192, 8192),
        (1e9, 1_000_000_000),
    ],
)
def test_sizes(text: object, number: int) -> None:
    assert SIZE.convert(text) == number
    assert type(SIZE.convert(text)) is int


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("30s", 30.0),
        ("2m", 120.0),
        ("2 min", 120.0),
        ("1h30m", 5400.0),
        ("1h 30m 15s", 5415.0),
        ("500ms", 0.5),
        ("0.1s", 0.1),
        ("1.5d", 129_600.0),
        ("0s", 0.0),
        ("2.5", 2.5),
        ("1e2", 100.0),
        (2, 2.0),
    ],
)
def test_times(text: object, number: float) -> None:
    assert TIME.convert(text) == number
    assert type(TIME.convert(text)) is float


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("5 parsecs", "'5 parsecs' is not in bytes, whose units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        ("1.5 bytes", "1.5 is not a whole number"),
        (
            "5 sec",
            "'5 sec' is not in bytes, whose units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB",
        ),
        ("10M", "'10M' is not in bytes, whose units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        ("1.5b", "1.5 is not a whole number"),
        ("0.0001 KiB", "0.1024 is not a whole number"),
        ("-1KiB", "'-1KiB' is not a whole number"),
        ("+1KiB", "'+1KiB' is not a whole number"),
        ("1,5 KiB", "'1,5 KiB' is not a whole number"),
        ("1  KiB", "'1  KiB' is not a whole number"),
        ("KiB", "'KiB' is not a whole number"),
        ("1_0 KiB", "'1_0 KiB' is not a whole number"),
        ("\u0661 KiB", "'\u0661 KiB' is not a whole number"),  # a digit elsewhere
        ("nan", "'nan' is not a whole number"),
        ("0 KiB", "0 is less than 1"),
    ],
)
def test_what_is_no_size(text: str, reason: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(max_request_body_size=text)
    assert str(raised.value) == f"max_request_body_size: {reason}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("5 parsecs", "'5 parsecs' is not in seconds, whose units are ms, s, min, h, d"),
        ("1 KiB", "'1 KiB' is not in seconds, whose units are ms, s, min, h, d"),
        ("-1s", "'-1s' is not a number"),
        ("nan s", "'nan s' is not a number"),
        ("366d", "31622400.0 is more than 31536000"),
        ("99999999999999999999d", "8.64e+24 is more than 31536000"),
    ],
)
def test_what_is_no_time(text: str, reason: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(channel_timeout=text)
    assert str(raised.value) == f"channel_timeout: {reason}"


def test_other_numbers_have_no_units() -> None:
    with pytest.raises(SettingsError, match=r"^threads: '4 threads' is not a whole number$"):
        Settings.from_keywords(threads="4 threads")


def test_what_is_printed_is_taken() -> None:
    """A default of the reference and of --help, with its unit, is that default."""
    numbers = [declaration for declaration in ALL if declaration.unit in UNITS]
    assert len(numbers) > 10
    for declaration in numbers:
        assert declaration.convert(declaration.default_text) == declaration.default
    assert SIZE.convert("1 byte") == 1
    assert SIZE.convert(f"{SIZE.default} Bytes") == SIZE.default


@given(
    parts=st.lists(
        st.tuples(
            st.decimals(0, 10**12, allow_nan=False, places=3) | st.integers(0, 10**15).map(Decimal),
            st.sampled_from(["", " "]),
            st.integers(0, 99),
            st.sampled_from([str.lower, str.upper, str]),
        ),
        min_size=1,
        max_size=4,
    ),
    kind=st.sampled_from(sorted(FACTORS)),
)
def test_any_sum_of_quantities_is_exact(parts: list[tuple[Decimal, str, int, type[str]]], kind: str) -> None:
    units = sorted(FACTORS[kind])
    chosen = [(number, space, units[n % len(units)], spell) for number, space, n, spell in parts]
    text = " ".join(f"{number:f}{space}{spell(unit)}" for number, space, unit, spell in chosen)
    expected = sum((Fraction(number) * FACTORS[kind][unit] for number, _, unit, _ in chosen), Fraction())
    result = expand_units(text, kind)
    assert result == (int(expected) if expected.denominator == 1 else float(expected))


@given(text=st.text(max_size=30) | st.from_regex(r"\A([0-9]*\.?[0-9]* ?[kmgtibshd]*){1,4}\Z"))
@pytest.mark.parametrize("kind", sorted(UNITS))
def test_any_text_is_a_quantity_or_left_as_it_is_or_refused(kind: str, text: str) -> None:
    try:
        result = expand_units(text, kind)
    except ValueError:
        return
    assert result == text or (isinstance(result, int | float) and result >= 0)


@given(number=st.integers(0, 10**16))
def test_a_size_for_a_reader_is_that_size(number: int) -> None:
    text = in_bytes(number).removesuffix(" bytes")
    assert SIZE.convert(text) == number if number else text == "0"


# Permissions.


def test_permissions_are_octal_text_or_the_number_itself() -> None:
    perms = BY_NAME["unix_socket_perms"]
    for mode in range(0o1000):
        assert {perms.convert(text) for text in (f"{mode:o}", f"{mode:03o}", oct(mode), f" {mode:o} ")} == {
            mode
        }
        assert perms.convert(mode) == mode
        assert perms.text_of(mode) == f"{mode:o}"


@pytest.mark.parametrize("mode", [600, 660, 666, 777, -1, 0o1000, "1777", "-1"])
def test_permissions_that_cannot_be(mode: object) -> None:
    """600 is what people write who mean 0o600."""
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(unix_socket_perms=mode)
    assert str(raised.value) == (
        f"unix_socket_perms: {mode!r} is not a file mode such as 600: as a number, write 0o600"
    )


@pytest.mark.parametrize("mode", ["", "rw-------", "0x180", "999", "6 0 0", True, None, 384.5, b"600"])
def test_what_are_no_permissions(mode: object) -> None:
    with pytest.raises(SettingsError, match=r"^unix_socket_perms: .* is not a file mode such as 600$"):
        Settings.from_keywords(unix_socket_perms=mode)
