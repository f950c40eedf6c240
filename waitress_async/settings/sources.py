"""Settings from files, the environment and the command line, each value with where it came from."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from waitress_async.errors import SettingsError
from waitress_async.settings.declaration import VARIABLE_PREFIX, Declaration, check_names
from waitress_async.settings.rules import LISTENING, check_exclusions, excluded_by

PROJECT_FILE: Final = "pyproject.toml"
# As it is imported, and as it is installed.
PROJECT_TABLES: Final = ("waitress_async", "waitress-async")
OWN_FILES: Final = ("waitress_async.toml", "waitress-async.toml")
CONFIG_VARIABLE: Final = VARIABLE_PREFIX + "CONFIG"

# Of a configuration file. Somebody's log given by mistake must not fill the memory.
_MOST_BYTES: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class Given:
    """A value, and who gave it."""

    # As somebody wrote it, which may be a secret, or cast already; the settings made of it cast and check it.
    value: object = field(repr=False)
    origin: str  # as a person calls it: a file, a variable, a flag


Values = dict[str, Given]


def read_sources(
    declarations: Iterable[Declaration],
    *,
    directory: Path,
    config: str | None,
    environ: Mapping[str, str],
    keywords: Mapping[str, Given],
    passed: Mapping[str, Given] | None = None,
) -> Values:
    """What is given for `declarations`, and by whom. A later source wins:

    `[tool.waitress_async]` in `directory`/pyproject.toml; `directory`/waitress_async.toml, or the file
    `config`; the variables `WAITRESS_ASYNC_*`; `keywords`. What says where to listen replaces what an
    earlier source says in another way. If none says so, `passed` does. `$PORT` is the default of `port`,
    unless that, or another way to say where to listen, is given by then.

    Raises SettingsError, which names the source and the setting. Reads files: not for the loop's thread.
    """
    by_name = {declaration.name: declaration for declaration in declarations}
    result: Values = {}
    for source in (
        _of_project(by_name, directory / PROJECT_FILE),
        _of_own_file(by_name, directory, config or environ.get(CONFIG_VARIABLE) or None),
        _of_environ(by_name, environ),
        keywords,
    ):
        _check_exclusions(source)
        for excluded in excluded_by(source):
            result.pop(excluded, None)
        result.update(source)
    if passed and LISTENING.isdisjoint(result):
        result.update(passed)
    port = environ.get("PORT")
    if port and not (excluded_by(["port"]) | {"port"}) & result.keys():
        result["port"] = _convert(by_name["port"], port, "$PORT")
    return result


def _check_exclusions(source: Mapping[str, Given]) -> None:
    try:
        check_exclusions(source)
    except SettingsError as error:
        about = [name for name in source if excluded_by([name]) & source.keys()]
        origins = dict.fromkeys(source[name].origin for name in about)
        raise SettingsError(f"{', '.join(origins)}: {error}") from None


def _of_project(by_name: Mapping[str, Declaration], path: Path) -> Values:
    tools = (_read_toml(path) if path.is_file() else {}).get("tool", {})
    tables = {f"{PROJECT_FILE} [tool.{name}]": name for name in PROJECT_TABLES}
    origin = _only([origin for origin, name in tables.items() if isinstance(tools, dict) and name in tools])
    return _of_table(by_name, tools[tables[origin]], origin) if origin else {}


def _of_own_file(by_name: Mapping[str, Declaration], directory: Path, config: str | None) -> Values:
    name = config or _only([file for file in OWN_FILES if (directory / file).is_file()])
    return _of_table(by_name, _read_toml(directory / name), name) if name else {}


def _only(found: Sequence[str]) -> str | None:
    """What is found under one of its two names, if it is. Raises SettingsError for both."""
    if len(found) > 1:
        raise SettingsError(f"{' and '.join(found)}: one of them only, for they are two names for the same")
    return found[0] if found else None


def _of_table(by_name: Mapping[str, Declaration], table: object, origin: str) -> Values:
    if not isinstance(table, dict):
        raise SettingsError(f"{origin}: is not a table")
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in values:
            raise SettingsError(f"{origin}: {name} is given twice")
        values[name] = value
    return _convert_all(by_name, {name: (value, origin) for name, value in values.items()})


def _of_environ(by_name: Mapping[str, Declaration], environ: Mapping[str, str]) -> Values:
    """Empty variables are as good as none: that is how compose files pass what is not set."""
    return _convert_all(
        by_name,
        {
            variable.removeprefix(VARIABLE_PREFIX).lower(): (text, variable)
            for variable, text in environ.items()
            if variable.startswith(VARIABLE_PREFIX) and variable != CONFIG_VARIABLE and text
        },
    )


def _convert_all(by_name: Mapping[str, Declaration], values: Mapping[str, tuple[object, str]]) -> Values:
    result = {}
    textual = [declaration.name for declaration in by_name.values() if not declaration.keyword_only]
    for name, (value, origin) in values.items():
        try:
            check_names([name], textual)
        except SettingsError as error:
            raise SettingsError(f"{origin}: {error}") from None
        result[name] = _convert(by_name[name], value, origin)
    return result


def _convert(declaration: Declaration, value: object, origin: str) -> Given:
    try:
        return Given(declaration.convert(value), origin)
    except ValueError as error:
        raise SettingsError(f"{origin}: {declaration.name}: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    text = read_configuration(path)
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise SettingsError(f"{path}: is not TOML: {error}") from None


def read_configuration(path: Path) -> bytes:
    """A file that people write, so of a bounded size. Raises SettingsError, which names it."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    if len(text) > _MOST_BYTES:
        raise SettingsError(f"{path}: is larger than {_MOST_BYTES} bytes")
    return text
