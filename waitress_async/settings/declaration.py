"""How a setting is declared, and what its declaration can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from waitress_async.errors import SettingsError
from waitress_async.settings.casts import CASTS, UNITS, CommaList, Gate, Mode, Secret, expand_units, in_bytes
from waitress_async.settings.other_servers import option_called

T = TypeVar("T")

VARIABLE_PREFIX: Final = "WAITRESS_ASYNC_"

_LISTS: Final = (tuple[str, ...], CommaList, tuple[Gate | str, ...])


def setting(default: T, **about: Any) -> T:
    """Declare a field of a class of settings. The keywords are attributes of `Declaration`."""
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What is known of a setting apart from its value."""

    name: str
    type: Any  # as annotated
    default: object
    help: str  # plain text, one or more sentences
    section: str = ""  # of the reference
    unit: str = ""  # of the value, if it has one
    minimum: float | None = None
    maximum: float | None = None
    flag_name: str = ""  # of a list whose flag has another name, that of one entry
    keyword_only: bool = False  # there is no way to write it as text
    without_effect: bool = False  # taken for waitress's sake
    check: Callable[[Any], object] | None = None  # raises ValueError with the reason

    @property
    def flag(self) -> str | None:
        """The command line's spelling, `--name` or `--name/--no-name`; None if it is keyword-only."""
        if self.keyword_only:
            return None
        flag = (self.flag_name or self.name).replace("_", "-")
        return f"--{flag}/--no-{flag}" if self.type is bool else f"--{flag}"

    @property
    def variable(self) -> str | None:
        """The environment variable that sets it; None if it is keyword-only."""
        return None if self.keyword_only else VARIABLE_PREFIX + self.name.upper()

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have, if they are few and fixed."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def is_list(self) -> bool:
        """Whether its value is any number of strings."""
        return self.type in _LISTS

    @property
    def is_secret(self) -> bool:
        """Whether its value must not be shown."""
        return bool(self.type == Secret | None)

    @property
    def default_text(self) -> str:
        """The default with its unit, for a reader."""
        if self.default and self.unit == "bytes" and isinstance(self.default, int):
            return in_bytes(self.default)
        counted = self.default and isinstance(self.default, int | float)
        return f"{self.text_of(self.default)} {self.unit if counted else ''}".rstrip()

    def text_of(self, value: object) -> str:
        """A value of it as text, for a reader."""
        if isinstance(value, bool):
            return "on" if value else "off"
        if value is None or value in ((), ""):
            return "none"
        if self.type is Mode:
            return f"{value:o}"
        if isinstance(value, tuple):
            return " ".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    def convert(self, value: object) -> object:
        """Cast `value`, which may be a string, to the setting's type and check it.

        Raises ValueError with the reason; it tells the value, unless that is a secret, but not the
        setting's name.
        """
        if self.choices:
            choice = value.strip().lower() if isinstance(value, str) else value
            if choice not in self.choices:
                raise ValueError(f"{value!r} is not one of {', '.join(self.choices)}")
            return choice
        if isinstance(value, str) and self.unit in UNITS:
            value = expand_units(value, self.unit)
        converted: Any = CASTS[self.type](value)
        if converted is None:
            return None
        if self.minimum is not None and converted < self.minimum:
            raise ValueError(f"{converted} is less than {self.minimum}")
        if self.maximum is not None and converted > self.maximum:
            raise ValueError(f"{converted} is more than {self.maximum}")
        if self.check is not None:
            self.check(converted)
        return converted


def declarations_of(settings: type) -> tuple[Declaration, ...]:
    """The declarations of a dataclass whose fields are made by `setting`, in order."""
    types = get_type_hints(settings)
    return tuple(
        Declaration(name=field.name, type=types[field.name], default=field.default, **field.metadata)
        for field in dataclasses.fields(settings)
    )


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise SettingsError, with what may be meant, for the first of `names` that is none of `known`."""
    all_known = list(known)
    for name in names:
        if name not in all_known:
            raise SettingsError(f"Unknown adjustment {name!r}{_hint(name, all_known)}")


def _hint(name: str, known: list[str]) -> str:
    def spell(setting: str) -> str:
        return f"{setting!r}" if setting in known else f"{setting!r} of the command"

    if (option := option_called(name)) is not None:
        return f" ({option.advice(spell)})"
    nearest = get_close_matches(name, known, 1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def convert_fields(settings: Any, declarations: Iterable[Declaration]) -> None:
    """Cast and check every field of a frozen instance in place. Raises SettingsError, which names it."""
    for declaration in declarations:
        try:
            value = declaration.convert(getattr(settings, declaration.name))
        except ValueError as error:
            raise SettingsError(f"{declaration.name}: {error}") from None
        object.__setattr__(settings, declaration.name, value)
