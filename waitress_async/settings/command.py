"""The settings that are the command's alone, declared as a server's are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from waitress_async.settings.declaration import Declaration, convert_fields, declarations_of, setting

_SECTION: Final = "Of the command alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSettings:
    """What the command serves, how it logs, and what its process has of its own.

    An instance is always valid. Raises SettingsError.
    """

    app: str | None = setting(
        None,
        unit="module:object",
        help="The application, where it is not an argument of the command.",
        section=_SECTION,
    )
    call: bool = setting(
        False,
        help="The object is a factory: call it to get the application.",
        section=_SECTION,
    )
    app_dir: str | None = setting(
        None,
        unit="folder",
        help="Where the application's modules are looked for first; none is the working directory.",
        section=_SECTION,
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] = setting(
        "info",
        help="Records of the server below this level are not logged.",
        section=_SECTION,
    )
    log_config: str | None = setting(
        None,
        unit="file",
        help="Configure logging by this file, JSON or TOML, as logging.config.dictConfig() has it. "
        "Read again on SIGHUP.",
        section=_SECTION,
    )

    switch_interval: float = setting(
        0.001,
        minimum=0,
        maximum=1,
        unit="seconds",
        help="A thread that computes lets others have the interpreter after this time "
        "(sys.setswitchinterval); 0 leaves Python's own, 0.005.",
        section=_SECTION,
    )

    def __post_init__(self) -> None:
        convert_fields(self, COMMAND_DECLARATIONS)


COMMAND_DECLARATIONS: Final[tuple[Declaration, ...]] = declarations_of(CommandSettings)
