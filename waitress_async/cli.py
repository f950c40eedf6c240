"""The command line: the only module that configures logging and chooses an exit status."""

from __future__ import annotations

import logging
import os
import sys
import traceback

import click

from waitress_async import __version__
from waitress_async.errors import AppImportError, SettingsError
from waitress_async.loader import load_app
from waitress_async.server import run
from waitress_async.settings import DECLARATIONS, Declaration, Settings


def _option(declaration: Declaration, flag: str) -> click.Option:
    def check(_context: click.Context, _option: click.Parameter, value: object) -> object:
        if value is not None:
            try:
                declaration.convert(value)
            except ValueError as error:
                raise click.BadParameter(str(error)) from None  # click adds the flag
        return value

    kind = declaration.unit or ("number" if declaration.type is int else "text")
    return click.Option(
        [flag],
        callback=check,
        multiple=declaration.type == tuple[str, ...],
        default=None,  # what is not given is left to Settings
        metavar=f"[{'|'.join(declaration.choices)}]" if declaration.choices else kind.upper(),
        help=f"{declaration.help} [default: {declaration.default_text}]",
    )


@click.command(
    name="waitress-async",
    params=[_option(declaration, declaration.flag) for declaration in DECLARATIONS if declaration.flag],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("names", metavar="MODULE:OBJECT", nargs=-1)
@click.option("--app", metavar="MODULE:OBJECT", help="The application, as an option.")
@click.option("--call", is_flag=True, help="OBJECT is a factory: call it to get the application.")
@click.version_option(__version__)
def main(names: tuple[str, ...], app: str | None, call: bool, **options: object) -> None:
    """Serve the WSGI application MODULE:OBJECT, for example shop.web:app.

    SIGINT and SIGTERM stop the server when requests in flight are finished; a second signal stops it at
    once.
    """
    if app is not None:
        names = (*names, app)
    if not names:
        raise click.UsageError("Specify an application")
    if len(names) > 1:
        raise click.UsageError("Provide only one WSGI app")
    given = {name: value for name, value in options.items() if value not in (None, ())}
    try:
        settings = Settings.from_keywords(**given)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    _serve(names[0], call=call, settings=settings)


def _serve(name: str, *, call: bool, settings: Settings) -> None:
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        app = load_app(name, call=call)
    except AppImportError as error:
        click.echo(error, err=True)
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        sys.exit(1)

    # After the import, so that what the app configured stands. Not the root logger: frameworks that print
    # their own records would print them twice.
    logger = logging.getLogger("waitress_async")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    _raise_descriptor_limit()

    try:
        run(app, settings)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:  # an address cannot be bound; the text names it
        raise click.ClickException(error.strerror or str(error)) from error


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
