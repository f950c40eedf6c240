"""A password is used by all ways to give it, and shown by none."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tests.settings.command import invoke, isolate
from waitress_async.errors import SettingsError
from waitress_async.settings import DECLARATIONS, Given, Settings

APP = "wsgiref.simple_server:demo_app"
PASSWORD = 'open "s\u00e9same" # \\'
TLS = "certfile = 'cert.pem'\nkeyfile = 'key.pem'\n"
FLAGS = ("--certfile=cert.pem", "--keyfile=key.pem")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a certificate, and its key, which is encrypted."""
    isolate(monkeypatch, tmp_path)
    leaf = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert("a.example", key_type=trustme.KeyType.ECDSA)
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(PASSWORD.encode()),
        )
    )
    return tmp_path


def in_toml(text: str) -> str:
    return f"keyfile_password = {json.dumps(text)}\n"


Give = Callable[[pytest.MonkeyPatch, str], tuple[str, ...]]


def by_flag(_monkeypatch: pytest.MonkeyPatch, password: str) -> tuple[str, ...]:
    return (f"--keyfile-password={password}",)


def by_variable(monkeypatch: pytest.MonkeyPatch, password: str) -> tuple[str, ...]:
    monkeypatch.setenv("WAITRESS_ASYNC_KEYFILE_PASSWORD", password)
    return ()


def by_project(_monkeypatch: pytest.MonkeyPatch, password: str) -> tuple[str, ...]:
    Path("pyproject.toml").write_text(f"[tool.waitress_async]\n{in_toml(password)}", encoding="utf-8")
    return ()


def by_own_file(_monkeypatch: pytest.MonkeyPatch, password: str) -> tuple[str, ...]:
    Path("waitress_async.toml").write_text(in_toml(password), encoding="utf-8")
    return ()


def by_config(_monkeypatch: pytest.MonkeyPatch, password: str) -> tuple[str, ...]:
    Path("my.toml").write_text(in_toml(password), encoding="utf-8")
    return ("--config=my.toml",)


WAYS: dict[Give, str] = {
    by_flag: "--keyfile-password",
    by_variable: "WAITRESS_ASYNC_KEYFILE_PASSWORD",
    by_project: "pyproject.toml [tool.waitress_async]",
    by_own_file: "waitress_async.toml",
    by_config: "my.toml",
}
each_way = pytest.mark.parametrize("give", WAYS, ids=lambda give: give.__name__)


@each_way
def test_it_opens_the_key_and_is_not_shown(give: Give, monkeypatch: pytest.MonkeyPatch) -> None:
    given = give(monkeypatch, PASSWORD)
    result = invoke("--check-config", "--print-config", *FLAGS, *given, APP)
    assert (result.exit_code, result.stderr) == (0, f"{APP} can be served\n")
    (line,) = re.findall(".*keyfile_password.* = .*", result.stdout)
    assert re.fullmatch(r'# keyfile_password = "\*\*\*" +# (.*)', line)
    assert line.endswith(f"# {WAYS[give]}")
    assert "same" not in result.output
    assert "keyfile_password" not in tomllib.loads(result.stdout)  # nor is "***" taken for it


@each_way
def test_a_wrong_one_is_not_told(give: Give, monkeypatch: pytest.MonkeyPatch) -> None:
    given = give(monkeypatch, "a wrong one")
    result = invoke("--check-config", *FLAGS, *given, APP)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: keyfile_password does not open the key in ")
    assert "wrong one" not in result.output
    assert result.exception is not None
    assert "wrong one" not in "".join(told_by(result.exception))
    # Without a certificate it is an error to give one, and it is not told either.
    result = invoke("--check-config", *given, APP)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("keyfile_password has no meaning unless certfile is set")
    assert "wrong one" not in result.output


def told_by(error: BaseException | None) -> list[str]:
    """What a traceback tells of it, and of what led to it."""
    told = []
    while error is not None:
        told += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    return told


def test_without_it_the_key_is_told_to_be_encrypted() -> None:
    result = invoke("--check-config", *FLAGS, APP)
    assert result.exit_code == 2
    assert "is encrypted, and keyfile_password is not set" in result.stderr


@pytest.mark.parametrize("value", ["123456", "[ 'secret' ]", "{ a = 'secret' }", "1979-05-27"])
def test_what_is_no_text_is_refused_untold(value: str) -> None:
    Path("waitress_async.toml").write_text(f"{TLS}keyfile_password = {value}\n")
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={})
    told = "".join(told_by(caught.value))
    assert re.search(r"waitress_async\.toml: keyfile_password: \w+ is not a string", told)
    for word in ("123456", "secret", "1979"):
        assert word not in told


def test_bytes_are_refused_untold() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_keywords(certfile="c", keyfile_password=b"sesame")
    assert str(caught.value) == "keyfile_password: bytes is not a string"
    assert "sesame" not in "".join(told_by(caught.value))


def test_settings_do_not_tell_it(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.from_keywords(certfile="c", keyfile_password="sesame")
    logging.getLogger(__name__).warning("%s %r %s", settings, settings.keyfile_password, asdict(settings))
    for one in (settings, replace(settings, threads=8), copy.deepcopy(settings)):
        assert one.keyfile_password == "sesame"
        for text in (repr(one), str(one), f"{one}", repr([one.keyfile_password]), str(asdict(one))):
            assert "sesame" not in text
            assert "***" in text
    assert "sesame" not in caplog.text
    assert "sesame" not in repr(Given("sesame", "--keyfile-password"))


def test_it_is_a_string_to_whoever_uses_it() -> None:
    password: Any = Settings.from_keywords(certfile="c", keyfile_password="sesame").keyfile_password
    assert pickle.loads(pickle.dumps(password)) == password == "sesame"
    assert password.encode() == b"sesame"
    assert hash(password) == hash("sesame")
    assert Settings.from_keywords(keyfile_password="") == Settings()


def test_there_is_no_other_secret() -> None:
    assert [declaration.name for declaration in DECLARATIONS if declaration.is_secret] == ["keyfile_password"]
