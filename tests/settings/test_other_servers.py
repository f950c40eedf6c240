"""What gunicorn's and uvicorn's options are told to be here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.settings.command import invoke, isolate
from tests.settings.reference import OPTIONS_PAGE
from tests.settings.samples import BY_NAME
from waitress_async.errors import SettingsError
from waitress_async.settings import Settings, option_called
from waitress_async.settings.other_servers import OPTIONS, Option

NAMES = [(option, name) for option in OPTIONS for name in option.names]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(monkeypatch, tmp_path)
    return tmp_path


def last_line(*arguments: str) -> str:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


def test_the_table_is_whole() -> None:
    assert max(Counter(name for _, name in NAMES).values()) == 1
    for option in OPTIONS:
        assert option.here in BY_NAME or (not option.here and option.remark)
        assert "|" not in option.remark


@pytest.mark.parametrize(("option", "name"), NAMES, ids=[name for _, name in NAMES])
def test_each_is_told_as_a_keyword_and_as_a_flag(option: Option, name: str) -> None:
    """None is a setting of ours, which would go before it."""
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(**{name: 1})
    assert str(raised.value).startswith(f"Unknown adjustment {name!r} (")
    flag = f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"
    for message in (str(raised.value), last_line(flag, "value", "shop:app")):
        assert message.endswith(f"{option.remark})")
        assert option.here.replace("_", "-") in message.replace("_", "-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bind=0.0.0.0:80"], "No such option '--bind' (here it is --listen)"),
        (["-b", ":80"], "No such option '-b' (here it is --listen)"),
        (["-b:80"], "No such option '-b' (here it is --listen)"),
        (["--fd=3"], "No such option '--fd' (here it is --listen, as fd://NUMBER)"),
        (
            ["--no-server-header"],
            "No such option '--no-server-header' (here it is --ident, empty sends none)",
        ),
        (["--threads=4", "--factory"], "No such option '--factory' (here it is --call)"),
        (
            ["-w4"],
            "No such option '-w' (a server is one process: raise threads, or start several with reuse_port)",
        ),
    ],
)
def test_flags(arguments: list[str], message: str) -> None:
    assert last_line(*arguments, "shop:app") == message


def test_keys_and_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "waitress_async.toml").write_text("keep-alive = 5")
    assert last_line("shop:app") == (
        "waitress_async.toml: Unknown adjustment 'keep_alive' (here it is 'channel_timeout')"
    )
    monkeypatch.setenv("WAITRESS_ASYNC_BIND", "a:1")
    (folder / "waitress_async.toml").unlink()
    assert last_line("shop:app") == ("WAITRESS_ASYNC_BIND: Unknown adjustment 'bind' (here it is 'listen')")


def test_what_is_of_the_command_is_no_keyword() -> None:
    with pytest.raises(
        SettingsError, match=r"^Unknown adjustment 'factory' \(here it is 'call' of the command\)$"
    ):
        Settings.from_keywords(factory=True)


@pytest.mark.parametrize("name", ["", "thread", "no_", "no_thread", "-", "BIND", "bind "])
def test_others_are_none(name: str) -> None:
    assert option_called(name) is None


def test_their_variables_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    page = OPTIONS_PAGE.read_text(encoding="utf-8")
    for name in ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "GUNICORN_CMD_ARGS", "UVICORN_PORT"):
        monkeypatch.setenv(name, "nonsense")
        assert name.replace("_PORT", "_") in page
    assert Settings.load() == Settings()
