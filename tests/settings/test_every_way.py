"""Every setting, by every way to give it."""

from __future__ import annotations

import configparser
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from wsgiref.simple_server import demo_app

import pytest

from tests.settings.command import invoke, isolate, printed_config
from tests.settings.samples import BY_NAME, COMPANIONS, SAMPLES, TEXTUAL, flags_of
from waitress_async import SettingsError, serve_paste
from waitress_async.settings import (
    COMMAND_DECLARATIONS,
    DECLARATIONS,
    CommandSettings,
    Declaration,
    Settings,
)

Values = Mapping[str, object]


class Ways:
    """Each way takes names with their samples, and returns all that is not as by default."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        isolate(monkeypatch, folder)
        self._folder = folder
        self._monkeypatch = monkeypatch

    def keyword(self, names: list[str]) -> Values:
        values = {name: SAMPLES[name][1] for name in names}
        if values.keys() <= {declaration.name for declaration in COMMAND_DECLARATIONS}:
            return changed(CommandSettings(**values))  # type: ignore[arg-type]  # casts are its own
        return changed(Settings.from_keywords(**values))

    def ini(self, names: list[str]) -> Values:
        """As PasteDeploy reads it."""
        parser = configparser.ConfigParser(interpolation=None)
        lines = [f"{name} = {SAMPLES[name][0]}".replace("\n", "\n  ") for name in names]
        parser.read_string("\n".join(["[server:main]", *lines]))
        served: list[Settings] = []
        run = importlib.import_module("waitress_async.server.run")  # the name alone is its function
        self._monkeypatch.setattr(run, "run", lambda _server, settings, **_: served.append(settings))
        assert serve_paste(demo_app, {"here": "/"}, **parser["server:main"]) == 0
        return changed(served[0])

    def flag(self, names: list[str]) -> Values:
        arguments = [
            flag for name in names for flag in flags_of(name, SAMPLES[name][BY_NAME[name].type is bool])
        ]
        origins = {name: str(BY_NAME[name].flag).partition("/")[0] for name in names}
        return printed(origins, *arguments)

    def variable(self, names: list[str]) -> Values:
        for name in names:
            self._monkeypatch.setenv(f"WAITRESS_ASYNC_{name.upper()}", SAMPLES[name][0])
        return printed({name: f"WAITRESS_ASYNC_{name.upper()}" for name in names})

    def pyproject(self, names: list[str]) -> Values:
        self._write_project(names)
        return printed(dict.fromkeys(names, "pyproject.toml [tool.waitress_async]"))

    def toml(self, names: list[str]) -> Values:
        """Numbers are numbers here, and lists are arrays."""
        self._write("waitress_async.toml", "", {name: SAMPLES[name][1] for name in names})
        return printed(dict.fromkeys(names, "waitress_async.toml"))

    def config(self, names: list[str]) -> Values:
        """With dashes, as in flags."""
        self._write("my.toml", "", {name.replace("_", "-"): SAMPLES[name][0] for name in names})
        return printed(dict.fromkeys(names, "my.toml"), "--config=my.toml")

    def load(self, names: list[str]) -> Values:
        """What is of the command alone is passed over."""
        self._write_project([name for name in names if BY_NAME[name] in DECLARATIONS])
        return changed(Settings.load())

    def _write_project(self, names: list[str]) -> None:
        self._write("pyproject.toml", "tool.waitress_async", {name: SAMPLES[name][0] for name in names})

    def _write(self, file: str, table: str, values: Values) -> None:
        lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
        head = [f"[{table}]"] if table else []
        (self._folder / file).write_text("\n".join([*head, *lines]))


def changed(settings: Settings | CommandSettings) -> Values:
    return {name: value for name, value in asdict(settings).items() if value != BY_NAME[name].default}


def printed(origins: Mapping[str, str], *arguments: str) -> Values:
    given = printed_config(*arguments)
    assert {name: origin for name, (_, origin) in given.items()} == origins
    return {name: BY_NAME[name].convert(value) for name, (value, _) in given.items()}


# Objects have a name there too, but the command alone imports them.
NAMES_OF_OBJECTS = [declaration for declaration in TEXTUAL if declaration.unit == "module:object"]
PRINTED = [Ways.flag, Ways.variable, Ways.pyproject, Ways.toml, Ways.config]
EVERY_WAY = [
    *((declaration, Ways.keyword) for declaration in TEXTUAL),
    *((declaration, Ways.load) for declaration in TEXTUAL if declaration in DECLARATIONS),
    *(
        (declaration, Ways.ini)
        for declaration in TEXTUAL
        if declaration in DECLARATIONS and declaration not in NAMES_OF_OBJECTS
    ),
    # Secrets are not printed: test_secret.py.
    *((declaration, way) for declaration in TEXTUAL if not declaration.is_secret for way in PRINTED),
]


@pytest.mark.parametrize(
    ("declaration", "way"),
    EVERY_WAY,
    ids=[f"{declaration.name}-{way.__name__}" for declaration, way in EVERY_WAY],
)
def test_every_setting_by_every_way(
    declaration: Declaration,
    way: Callable[[Ways, list[str]], Values],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [*COMPANIONS.get(declaration.name, ()), declaration.name]
    values = way(Ways(tmp_path, monkeypatch), names)
    assert values == {name: SAMPLES[name][1] for name in names}
    assert type(values[declaration.name]) is type(SAMPLES[declaration.name][1])
    assert values[declaration.name] != declaration.default


def test_sockets_are_by_keyword_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [declaration.name for declaration in BY_NAME.values() if declaration.keyword_only]
    assert objects == ["sockets", "ssl_context"]
    isolate(monkeypatch, tmp_path)
    assert "No such option" in invoke("--sockets=3", "--print-config").stderr
    monkeypatch.setenv("WAITRESS_ASYNC_SOCKETS", "3")
    assert "WAITRESS_ASYNC_SOCKETS: Unknown adjustment 'sockets'" in invoke("--print-config").stderr
    monkeypatch.delenv("WAITRESS_ASYNC_SOCKETS")
    (tmp_path / "waitress_async.toml").write_text("sockets = []")
    assert "waitress_async.toml: Unknown adjustment 'sockets'" in invoke("--print-config").stderr


@pytest.mark.parametrize("name", ["lifespan", "thread_init", "thread_exit", "gates"])
def test_in_an_ini_objects_have_no_name(name: str) -> None:
    with pytest.raises(SettingsError) as raised:
        serve_paste(demo_app, {"here": "/"}, **{name: "shop:connect"})
    assert str(raised.value) == (
        f"{name}: 'shop:connect' is a name, which the command alone looks up: give the function itself"
    )
