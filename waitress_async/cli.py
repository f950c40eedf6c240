"""The command line: it alone reads the environment, configures logging and chooses an exit status."""

from __future__ import annotations

import copy
import json
import logging
import logging.config
import os
import re
import sys
import tomllib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from waitress_async import __version__
from waitress_async.buffers import check_directory
from waitress_async.errors import AppImportError, LifespanError, SettingsError
from waitress_async.loader import load_app, load_object
from waitress_async.server import Notifier, Server, listen_fds, load_tls, run
from waitress_async.settings import (
    COMMAND_DECLARATIONS,
    DECLARATIONS,
    LISTENING,
    CommandSettings,
    Declaration,
    DescriptorPlace,
    Given,
    Settings,
    SystemdPlace,
    option_called,
    read_configuration,
    read_sources,
)

_DECLARATIONS: Final = (*COMMAND_DECLARATIONS, *DECLARATIONS)

# What the shell completes for a unit.
_COMPLETED: Final = {"file": "file", "folder": "dir"}

# What would not stay in its line, and what TOML does not take as it is.
_ESCAPED: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# What dictConfig() raises for what it cannot make sense of.
_LOG_ERRORS: Final = (ValueError, TypeError, AttributeError, ImportError, RecursionError)

logger = logging.getLogger("waitress_async")


def _option(declaration: Declaration, flag: str) -> click.Option:
    def check(_context: click.Context, _option: click.Parameter, value: object) -> object:
        if value is not None:
            try:
                declaration.convert(value)
            except ValueError as error:
                raise click.BadParameter(str(error)) from None  # click adds the flag
        return value

    def complete(_context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
        if declaration.unit in _COMPLETED:
            return [CompletionItem(begun, type=_COMPLETED[declaration.unit])]
        return [CompletionItem(choice) for choice in declaration.choices if choice.startswith(begun)]

    effect = "No effect here: " if declaration.without_effect else ""
    kind = declaration.unit or ("number" if declaration.type is int else "text")
    return click.Option(
        [flag, declaration.name],
        callback=check,
        shell_complete=complete,
        multiple=declaration.is_list,
        default=None,  # what is not given is left to the other sources
        metavar=f"[{'|'.join(declaration.choices)}]" if declaration.choices else kind.upper(),
        help=f"{effect}{declaration.help} [default: {declaration.default_text}]",
    )


class _Command(click.Command):
    """A command that knows what other servers call their options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            option = option_called(error.option_name.lstrip("-"))
            if option is None:
                raise  # with the nearest of our own
            advice = option.advice(lambda name: f"--{name.replace('_', '-')}")
            raise click.UsageError(f"No such option {error.option_name!r} ({advice})", ctx) from None


@click.command(
    name="waitress-async",
    cls=_Command,
    params=[_option(declaration, declaration.flag) for declaration in _DECLARATIONS if declaration.flag],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every option is also an environment variable (WAITRESS_ASYNC_THREADS) and a key (threads = 8) of "
    "waitress_async.toml, or of [tool.waitress_async] in pyproject.toml, each before the next.",
)
@click.argument("names", metavar="[MODULE:OBJECT]", nargs=-1)
@click.option(
    "--config",
    type=click.Path(readable=False),
    metavar="FILE",
    help="Configuration file, instead of waitress_async.toml.",
)
@click.option("--print-config", is_flag=True, help="Print each setting and where it comes from, as TOML.")
@click.option("--check-config", is_flag=True, help="Check the settings, import the application, and exit.")
@click.version_option(__version__)
def main(
    names: tuple[str, ...],
    config: str | None,
    print_config: bool,
    check_config: bool,
    **options: object,
) -> None:
    """Serve the WSGI application MODULE:OBJECT, for example shop.web:app.

    OBJECT may be a call with literal arguments, 'shop.web:create_app("prod")'. SIGINT and SIGTERM stop the
    server when requests in flight are finished; a second signal stops it at once.
    """
    flags = _given_by_flags(options)
    if len(names) + ("app" in flags) > 1:
        raise click.UsageError("Provide only one WSGI app")
    if names:
        flags["app"] = Given(names[0], "argument")
    try:
        passed = _passed_by_systemd()
        given = read_sources(
            _DECLARATIONS, directory=Path(), config=config, environ=os.environ, keywords=flags, passed=passed
        )
        command = CommandSettings(**_values(given, COMMAND_DECLARATIONS))
        settings = Settings.from_keywords(**_values(given, DECLARATIONS))
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    if passed:
        _warn_of_unused_sockets(settings, given)
    if print_config:
        click.echo(_as_toml(command, settings, given))
        if not check_config:
            return
    if command.app is None:
        raise click.UsageError("Specify an application, such as shop.web:app")
    if command.switch_interval:
        sys.setswitchinterval(command.switch_interval)  # before the app, whose own choice stands
    with _import_errors_told():
        app = load_app(command.app, call=command.call, directory=command.app_dir)
        settings = settings.load_objects(
            lambda name, setting: load_object(name, kind=setting, directory=command.app_dir)
        )
    level = command.log_level.upper() if "log_level" in given else None
    log_file = _configure_logging(command, level)
    server = Server(app, settings)
    if check_config:
        _check_files(settings)
        click.echo(f"{command.app} can be served", err=print_config)  # stdout is TOML then
        return
    _serve(server, settings, log_file)


def _given_by_flags(options: Mapping[str, object]) -> dict[str, Given]:
    flags = {declaration.name: declaration for declaration in _DECLARATIONS}
    given = {}
    for name, value in options.items():
        if value not in (None, ()):
            flag = str(flags[name].flag).partition("/")[0]
            given[name] = Given(value, flag)
    return given


def _values(given: Mapping[str, Given], declarations: Iterable[Declaration]) -> dict[str, Any]:
    return {d.name: given[d.name].value for d in declarations if d.name in given}


def _passed_by_systemd() -> dict[str, Given]:
    """What listens on the sockets that systemd has passed to this process; empty if it has passed none."""
    try:
        passed = listen_fds(os.environ, os.getpid())
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return {"listen": Given(("systemd://",), "$LISTEN_FDS")} if passed else {}


def _warn_of_unused_sockets(settings: Settings, given: Mapping[str, Given]) -> None:
    if not any(isinstance(place, SystemdPlace | DescriptorPlace) for place in settings.places):
        told = ", ".join(f"{name} ({given[name].origin})" for name in sorted(LISTENING & given.keys()))
        click.echo(f"Warning: sockets passed by systemd are not used, because of: {told}", err=True)


def _as_toml(command: CommandSettings, settings: Settings, given: Mapping[str, Given]) -> str:
    """Every setting and who gave it. What nobody gave is a comment, and so is a secret: a stand-in for it
    would be taken for the secret by whoever reads this again."""
    owners = [(command, COMMAND_DECLARATIONS), (settings, DECLARATIONS)]
    return "\n".join(
        _toml_line(declaration, getattr(owner, declaration.name), given.get(declaration.name))
        for owner, declarations in owners
        for declaration in declarations
        if not declaration.keyword_only
    )


def _toml_line(declaration: Declaration, value: object, given: Given | None) -> str:
    line = f"{declaration.name} = {_toml_value(declaration, value)}"
    origin = _one_line(given.origin) if given else "default"
    if given is None or declaration.is_secret:
        return f"# {line:<48} # {origin}"
    return f"{line:<50} # {origin}"


def _toml_value(declaration: Declaration, value: object) -> str:
    if declaration.unit == "octal":
        return f"0o{value:o}"
    shown = "***" if declaration.is_secret and value else value
    text = json.dumps("" if shown is None else shown, ensure_ascii=False)  # of these types it makes TOML too
    return _one_line(text)


def _one_line(text: str) -> str:
    """`text` with escapes. A path that is not Unicode cannot be written in TOML: with its surrogates as
    escapes it is refused there, rather than taken for another one."""
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


@contextmanager
def _import_errors_told() -> Iterator[None]:
    try:
        yield
    except AppImportError as error:
        click.echo(error, err=True)
        cause = error.__cause__
        if isinstance(cause, SyntaxError) or (cause is not None and cause.__traceback__ is not None):
            traceback.print_exception(cause)  # else the line above says all that is known
        sys.exit(1)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None


def _check_files(settings: Settings) -> None:
    """Try what a server tries when it starts, before it listens."""
    with _told_in_a_line():
        check_directory(settings.tmp_dir)
        load_tls(settings)


def _serve(server: Server, settings: Settings, log_file: _LogFile | None) -> None:
    _raise_descriptor_limit()
    try:
        notifier = Notifier.from_environ(os.environ, os.getpid())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with _told_in_a_line(), _server_names_untold(), _lifespan_errors_told():
        reload = log_file.reload if log_file else None
        run(server, settings, notifier=notifier, reload=reload, is_program=True)


@contextmanager
def _lifespan_errors_told() -> Iterator[None]:
    try:
        yield
    except LifespanError as error:
        click.echo(error, err=True)
        if error.__cause__ is not None and not error.is_logged:
            traceback.print_exception(error.__cause__)
        sys.exit(1)


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """What a server raises when it cannot start is the last line of the command."""
    try:
        yield
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:  # such as for an address that cannot be bound; the text names it
        raise click.ClickException(error.strerror or str(error)) from error


@contextmanager
def _server_names_untold() -> Iterator[None]:
    """Pass over what Python writes, with a traceback, when a client asks for a name that is not ASCII.

    Its `ssl` decodes names before it asks for their context (`sni`), and tells this hook when it cannot. The
    handshake fails, which the server logs, as it does for whatever else a client does wrong.
    """
    tell = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, UnicodeDecodeError) and error.object == unraisable.object):
            tell(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = tell


# -- logging


def _configure_logging(command: CommandSettings, level: str | None) -> _LogFile | None:
    """After the app's import, so that what the app configured stands, but for what is asked for here.

    `level` is the one that somebody asked for. Returns the file of the configuration, if there is one.
    """
    if command.log_config is not None:
        log_file = _LogFile(command.log_config, level)
        try:
            log_file.apply()
        except SettingsError as error:
            raise click.UsageError(str(error)) from None
        return log_file
    if not logger.hasHandlers():
        # Not the root logger: frameworks that print their own records would print them twice.
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_LOG_FORMAT))
        logger.addHandler(handler)
    if level is not None or logger.level == logging.NOTSET:
        logger.setLevel(level or command.log_level.upper())
    return None


class _LogFile:
    """A file for `logging.config.dictConfig`, by which logging is configured, and again."""

    def __init__(self, file: str, level: str | None) -> None:
        """`level` is that of our logger, whatever the file says, if it is not None."""
        self._file = file
        self._level = level
        self._worked: dict[str, Any] | None = None  # the last that did

    def apply(self) -> None:
        """Configure logging by the file as it is now. If it cannot, what worked last is configured again.

        Raises SettingsError.
        """
        config = self._read()
        try:
            self._configure(config)
        except _LOG_ERRORS as error:
            if self._worked is not None:
                with suppress(*_LOG_ERRORS):  # for dictConfig() removes all handlers before it looks further
                    self._configure(self._worked)
            raise SettingsError(f"log_config: {self._file}: {_with_cause(error)}") from None
        self._worked = config

    def reload(self) -> None:
        """As `apply`, but an error is logged."""
        try:
            self.apply()
        except SettingsError as error:
            logger.error("%s: logging stays as it is", error)
        else:
            logger.info("Logging is configured anew by %s", self._file)

    def _read(self) -> dict[str, Any]:
        try:
            text = read_configuration(Path(self._file))
        except SettingsError as error:
            raise SettingsError(f"log_config: {error}") from None
        try:
            parsed = json.loads(text) if self._file.endswith(".json") else tomllib.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"log_config: {self._file}: {error}") from None
        if not isinstance(parsed, dict):
            raise SettingsError(f"log_config: {self._file}: it is not a table")
        # Loggers that exist already are our own, and the app's: none of them is meant to fall silent.
        return {"version": 1, "disable_existing_loggers": False, **parsed}

    def _configure(self, config: dict[str, Any]) -> None:
        logging.config.dictConfig(copy.deepcopy(config))  # which may take things out of it
        if self._level is not None:
            logger.setLevel(self._level)


def _with_cause(error: BaseException) -> str:
    """What is wrong: dictConfig says where, and its cause says what."""
    return f"{error}: {error.__cause__}" if error.__cause__ else str(error)


def _raise_descriptor_limit() -> None:
    """Let this process open as many files as it may: each connection is one."""
    try:
        import resource
    except ImportError:
        return  # not on this system
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # macOS refuses its own "unlimited"
