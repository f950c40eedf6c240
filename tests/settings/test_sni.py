"""The entries of `sni`: names with their files, and what is none."""

from __future__ import annotations

import pytest

from waitress_async.errors import SettingsError
from waitress_async.settings import Settings, parse_sni


def test_names_and_their_files() -> None:
    entries = ["a.example=a.crt,a.key", "B.Example=b.pem", "*.c=d=e.crt,f=g.key", "xn--bcher-kva=h", "_i=j"]
    assert parse_sni(entries) == {
        "a.example": ("a.crt", "a.key"),
        "b.example": ("b.pem", None),
        "*.c": ("d=e.crt", "f=g.key"),
        "xn--bcher-kva": ("h", None),
        "_i": ("j", None),
    }


NOT_AN_ENTRY = "sni: %a is not NAME=CERTFILE,KEYFILE or NAME=CERTFILE"
NOT_A_NAME = "sni: %a is not a host name or *.NAME in ASCII (xn--... for others)"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["a.example"], NOT_AN_ENTRY % "a.example"),
        (["a.example="], NOT_AN_ENTRY % "a.example="),
        (["a.example=,k"], NOT_AN_ENTRY % "a.example=,k"),
        (["a.example=c,"], NOT_AN_ENTRY % "a.example=c,"),
        (["a.example=c,k,"], NOT_AN_ENTRY % "a.example=c,k,"),
        (["a.example=c,k,b.example=c,k"], NOT_AN_ENTRY % "a.example=c,k,b.example=c,k"),
        (["a.example = c"], NOT_AN_ENTRY % "a.example"),  # three entries
        (["=c,k"], NOT_A_NAME % ""),
        (["b\u00fccher.example=c,k"], NOT_A_NAME % "b\u00fccher.example"),
        (["a..example=c,k"], NOT_A_NAME % "a..example"),
        ([".example=c,k"], NOT_A_NAME % ".example"),
        (["a.example.=c,k"], NOT_A_NAME % "a.example."),
        (["*=c,k"], NOT_A_NAME % "*"),
        (["*.=c,k"], NOT_A_NAME % "*."),
        (["a*.example=c,k"], NOT_A_NAME % "a*.example"),
        (["*.*.example=c,k"], NOT_A_NAME % "*.*.example"),
        (["a.*.example=c,k"], NOT_A_NAME % "a.*.example"),
        (["https://a.example=c,k"], NOT_A_NAME % "https://a.example"),
        (["a.example:443=c,k"], NOT_A_NAME % "a.example:443"),
        (["a.example\0=c,k"], NOT_A_NAME % "a.example\0"),
        (["a.example=c,k", "a.example=c,k"], "sni: a.example is there twice"),
        (["A.example=c,k", "a.EXAMPLE=d,l"], "sni: a.example is there twice"),
        ([f"{'a' * 64}.example=c,k"], NOT_A_NAME % f"{'a' * 64}.example"),
        ([f"{'a.' * 126}aa=c,k"], NOT_A_NAME % f"{'a.' * 126}aa"),
    ],
)
def test_what_is_no_entry(entries: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_keywords(certfile="c", sni=entries)
    assert str(caught.value) == message
