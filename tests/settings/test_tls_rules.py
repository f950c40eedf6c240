"""What the settings of TLS need and exclude."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from waitress_async.errors import SettingsError
from waitress_async.settings import Settings


def refusal(**options: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.from_keywords(**options)
    return str(caught.value)


NEEDS_A_CERTIFICATE: list[dict[str, Any]] = [
    {"keyfile": "k"},
    {"keyfile_password": "p"},
    {"sni": ("a=b,c",)},
    {"ca_certs": "c"},
    {"client_verify": "optional"},
]


@pytest.mark.parametrize("given", NEEDS_A_CERTIFICATE, ids=str)
def test_what_needs_a_certificate(given: dict[str, Any]) -> None:
    (name,) = given
    assert refusal(**given) == f"{name} has no meaning unless certfile is set"


@pytest.mark.parametrize("given", [{"certfile": "c"}, *NEEDS_A_CERTIFICATE], ids=str)
def test_a_context_excludes_the_rest(given: dict[str, Any]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert Settings(ssl_context=context).speaks_tls
    (name,) = given
    assert refusal(**given, ssl_context=context) == f"{name} may not be set if ssl_context is set"


def test_a_clients_context_is_none_of_a_servers() -> None:
    assert refusal(ssl_context=ssl.create_default_context()) == (
        "ssl_context: it is a client's: make it with ssl.PROTOCOL_TLS_SERVER"
    )


def test_authorities_are_there_to_verify_clients() -> None:
    """Nobody must believe that clients are verified when they are not."""
    assert refusal(certfile="c", ca_certs="a") == "ca_certs has no meaning without setting client_verify"
    for mode in ("required", "optional"):
        assert refusal(certfile="c", client_verify=mode) == (
            f"client_verify cannot be {mode} without setting ca_certs"
        )
