from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.settings.samples import ALL, BY_NAME, COMPANIONS, SAMPLES, TEXTUAL
from waitress_async.errors import SettingsError, WaitressAsyncError
from waitress_async.settings import COMMAND_DECLARATIONS, CommandSettings, Declaration, Settings

NUMBERS = [d for d in ALL if d.type in (int, int | None, float)]
BOUNDED = [d for d in NUMBERS if not d.without_effect]


def named(declarations: list[Declaration]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("declaration", declarations, ids=lambda declaration: declaration.name)


def make(declaration: Declaration, value: object) -> object:
    """The value of the setting, where this one is given for it."""
    options: dict[str, Any] = {declaration.name: value}
    if declaration in COMMAND_DECLARATIONS:
        return getattr(CommandSettings(**options), declaration.name)
    for companion in COMPANIONS.get(declaration.name, ()):
        options[companion] = SAMPLES[companion][0]
    return getattr(Settings.from_keywords(**options), declaration.name)


def refusal(declaration: Declaration, value: object) -> str:
    with pytest.raises(SettingsError) as raised:
        make(declaration, value)
    return str(raised.value)


@named(list(ALL))
def test_a_declaration_is_whole(declaration: Declaration) -> None:
    settings = CommandSettings() if declaration in COMMAND_DECLARATIONS else Settings()
    assert getattr(settings, declaration.name) == declaration.default
    assert declaration.convert(declaration.default) == declaration.default
    assert declaration.help.endswith(".")
    assert declaration.section


def test_names_are_given_once() -> None:
    assert len(BY_NAME) == len(ALL)


def test_there_is_a_sample_for_each() -> None:
    assert SAMPLES.keys() == {declaration.name for declaration in TEXTUAL}


def test_sections_are_in_one_piece() -> None:
    """Or the reference would have a heading twice."""
    sections = [declaration.section for declaration in ALL]
    assert [
        n for n, section in enumerate(sections) if section in sections[:n] and section != sections[n - 1]
    ] == []


@named(list(ALL))
def test_a_wrong_type_names_the_setting(declaration: Declaration) -> None:
    told = "object is not" if declaration.is_secret else "<object object at "
    assert refusal(declaration, object()).startswith(f"{declaration.name}: {told}")


@named(NUMBERS)
def test_a_bool_is_not_a_number(declaration: Declaration) -> None:
    assert refusal(declaration, True) in {
        f"{declaration.name}: True is not a whole number",
        f"{declaration.name}: True is not a number",
    }


@named(BOUNDED)
def test_a_minimum(declaration: Declaration) -> None:
    assert declaration.minimum is not None
    kind = float if declaration.type is float else int
    below = kind(declaration.minimum - 1)
    assert refusal(declaration, below) == f"{declaration.name}: {below} is less than {declaration.minimum}"
    assert (
        refusal(declaration, str(below)) == f"{declaration.name}: {below} is less than {declaration.minimum}"
    )
    assert make(declaration, str(declaration.minimum)) == declaration.minimum


@named([d for d in ALL if d.maximum is not None])
def test_a_maximum(declaration: Declaration) -> None:
    assert declaration.maximum is not None
    assert refusal(declaration, declaration.maximum + 1).endswith(f" is more than {declaration.maximum}")
    assert make(declaration, declaration.maximum) == declaration.maximum


@named([d for d in ALL if d.choices])
def test_choices(declaration: Declaration) -> None:
    assert refusal(declaration, "none of them") == (
        f"{declaration.name}: 'none of them' is not one of {', '.join(declaration.choices)}"
    )
    for choice in declaration.choices:
        assert declaration.convert(choice) == choice
        assert declaration.convert(f" {choice.title()}\n") == choice


@pytest.mark.parametrize(
    ("name", "flag", "variable"),
    [
        ("max_queue", "--max-queue", "WAITRESS_ASYNC_MAX_QUEUE"),
        (
            "expose_tracebacks",
            "--expose-tracebacks/--no-expose-tracebacks",
            "WAITRESS_ASYNC_EXPOSE_TRACEBACKS",
        ),
        ("sockets", None, None),
    ],
)
def test_flag_and_variable(name: str, flag: str | None, variable: str | None) -> None:
    assert (BY_NAME[name].flag, BY_NAME[name].variable) == (flag, variable)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("threads", "4 threads"),
        ("port", "8080"),
        ("connection_limit", "0"),
        ("channel_timeout", "120 seconds"),
        ("outbuf_high_watermark", "16 MiB"),
        ("ipv4", "on"),
        ("call", "off"),
        ("listen", "none"),
        ("tmp_dir", "none"),
        ("url_prefix", "none"),
        ("unix_socket_perms", "600 octal"),
        ("proxy_protocol_from", "127.0.0.0/8 ::1 localhost"),
    ],
)
def test_defaults_for_a_reader(name: str, text: str) -> None:
    assert BY_NAME[name].default_text == text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("thread", " (did you mean 'threads'?)"),
        ("max_request_bodysize", " (did you mean 'max_request_body_size'?)"),
        ("x", ""),
        ("app", ""),  # of the command
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    for make_settings in (Settings.from_keywords, Settings.load):
        options: Any = {name: 1}
        with pytest.raises(SettingsError) as raised:
            make_settings(**options)
        assert str(raised.value) == f"Unknown adjustment '{name}'{hint}"


def test_errors_are_value_errors() -> None:
    assert issubclass(SettingsError, ValueError)
    assert issubclass(SettingsError, WaitressAsyncError)


def test_the_constructor_checks_too() -> None:
    for build in (Settings, lambda **options: dataclasses.replace(Settings(), **options)):
        with pytest.raises(SettingsError, match=r"^threads: 0 is less than 1$"):
            build(threads=0)


def test_the_constructor_casts_too() -> None:
    strings: Any = {"threads": "8", "listen": "a b"}
    assert Settings(**strings) == Settings(threads=8, listen=("a", "b"))


def test_settings_do_not_change() -> None:
    settings: Any = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.threads = 8
    assert not hasattr(settings, "__dict__")


IN_NO_HEADER = ["a\r\nSet-Cookie: b", "a\x00b", "a\tb", "\u20ac", "a\x85b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[(name, text) for name in ("ident", "server_name", "url_prefix") for text in IN_NO_HEADER],
        *[(name, text) for name in ("ident", "server_name") for text in (" a", "a ")],
    ],
)
def test_what_cannot_stand_in_a_header(name: str, text: str) -> None:
    message = refusal(BY_NAME[name], text)
    assert message.startswith(f"{name}: ")
    assert message.endswith(" is not printable Latin-1 text")


def test_the_server_name_is_not_empty() -> None:
    assert refusal(BY_NAME["server_name"], "").startswith("server_name: ''")


@pytest.mark.parametrize("text", ["up", "/up files", "../up"])
def test_prefixes_of_paths_begin_with_a_slash(text: str) -> None:
    assert refusal(BY_NAME["stream_request_prefix"], text).endswith(" does not begin with a slash")


@pytest.mark.parametrize(
    ("path", "streams"),
    [("/up", True), ("/up/", True), ("/up/a/b", True), ("/upper", False), ("/", False), ("/a/up", False)],
)
def test_a_prefix_is_of_whole_segments(path: str, streams: bool) -> None:
    assert Settings.from_keywords(stream_request_prefix="/up /other").streams(path) is streams
    assert Settings.from_keywords(stream_request_prefix="/").streams(path)
    assert Settings.from_keywords(stream_request_body=True).streams(path)
    assert not Settings().streams(path)
