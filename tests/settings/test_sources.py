"""Files, the environment, and what goes before what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any
from wsgiref.simple_server import demo_app

import pytest

from tests.settings.command import isolate, printed_config
from waitress_async import Server
from waitress_async.errors import SettingsError
from waitress_async.settings import InternetPlace, Settings, UnixPlace


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which there is nothing."""
    isolate(monkeypatch, tmp_path)
    return tmp_path


def load(environ: Mapping[str, str] = os.environ, *, config: str | None = None, **keywords: Any) -> Settings:
    return Settings.load(environ=environ, config=config, **keywords)


def refusal(environ: Mapping[str, str] = os.environ, *, config: str | None = None, **keywords: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        load(environ, config=config, **keywords)
    return str(raised.value)


def project(text: str) -> None:
    Path("pyproject.toml").write_text(f"[tool.waitress_async]\n{text}\n")


def own(text: str, file: str = "waitress_async.toml") -> None:
    Path(file).write_text(f"{text}\n")


# Precedence.


@pytest.mark.parametrize(
    "given", [*product([False, True], repeat=4)], ids=lambda given: "".join("-+"[g] for g in given)
)
def test_the_later_source_wins(given: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """All subsets of the four sources, by the command and by `Settings.load`."""
    in_project, in_file, in_environ, by_flag = given
    expected = (4, "default")
    if in_project:
        project("threads = 11")
        expected = (11, "pyproject.toml [tool.waitress_async]")
    if in_file:
        own("threads = 12")
        expected = (12, "waitress_async.toml")
    if in_environ:
        monkeypatch.setenv("WAITRESS_ASYNC_THREADS", "13")
        expected = (13, "WAITRESS_ASYNC_THREADS")
    if by_flag:
        expected = (14, "--threads")
    printed = printed_config(*(["--threads=14"] if by_flag else []))
    assert printed == ({"threads": expected} if any(given) else {})
    keywords: dict[str, Any] = {"threads": 14} if by_flag else {}
    assert load(**keywords).threads == expected[0]


def test_sources_add_up() -> None:
    project("threads = 11\nbacklog = 11\nident = 'a'\nport = 11")
    own("backlog = 12\nident = 'b'\nport = 12")
    environ = {"WAITRESS_ASYNC_IDENT": "c", "WAITRESS_ASYNC_PORT": "13", "PORT": "1"}
    assert load(environ, port=14) == Settings(threads=11, backlog=12, ident="c", port=14)


WAYS_TO_LISTEN: dict[str, tuple[str, Mapping[str, object]]] = {
    "host": ("::1", {"host": "::1"}),
    "port": ("81", {"port": 81}),
    "listen": ("a:1", {"listen": ("a:1",)}),
    "unix_socket": ("/run/a", {"unix_socket": "/run/a"}),
}
REPLACED = [
    (earlier, later)
    for earlier, later in product(WAYS_TO_LISTEN, repeat=2)
    if earlier != later and {earlier, later} != {"host", "port"}
]


@pytest.mark.parametrize(("earlier", "later"), REPLACED)
def test_another_way_to_listen_replaces_the_earlier(earlier: str, later: str) -> None:
    old, new = WAYS_TO_LISTEN[earlier][0], WAYS_TO_LISTEN[later][0]
    expected = Settings(**WAYS_TO_LISTEN[later][1])  # type: ignore[arg-type]
    variable = f"WAITRESS_ASYNC_{later.upper()}"
    project(f"{earlier} = '{old}'")
    assert load({variable: new}) == expected
    assert load({}, **{later: new}) == expected
    own(f"{later} = '{new}'")
    assert load({}) == expected
    own("")
    assert load({variable: new, "PORT": "5000"}).places == (
        (InternetPlace("::1", 5000),) if later == "host" else expected.places
    )


def test_host_and_port_stand_together() -> None:
    project("host = '::1'")
    assert load({"WAITRESS_ASYNC_PORT": "81"}).places == (InternetPlace("::1", 81),)


def test_sockets_replace_what_a_source_says() -> None:
    own("host = '::1'\nport = 81")
    assert load({"PORT": "5000"}, sockets=()) == Settings()
    own("unix_socket = '/run/a'")
    assert load(sockets=()) == Settings()
    own("listen = 'a:1'")
    assert load(sockets=()) == Settings()


def test_a_replaced_value_was_checked_all_the_same() -> None:
    own("listen = 'a:b'")
    assert refusal(port=81).startswith("waitress_async.toml: listen: Invalid host/port specified.")


@pytest.mark.parametrize(
    ("environ", "keywords", "origins"),
    [
        ({}, {}, "waitress_async.toml"),
        (
            {"WAITRESS_ASYNC_LISTEN": "a", "WAITRESS_ASYNC_PORT": "1"},
            {},
            "WAITRESS_ASYNC_LISTEN, WAITRESS_ASYNC_PORT",
        ),
        ({}, {"listen": "a", "port": 1}, "keyword"),
    ],
)
def test_one_source_may_not_contradict_itself(
    environ: dict[str, str], keywords: dict[str, Any], origins: str
) -> None:
    if not environ and not keywords:
        own("threads = 2\nlisten = 'a:1'\nport = 1")
    assert refusal(environ, **keywords) == f"{origins}: host or port may not be set if listen is set."


# $PORT


def test_port_as_hosts_set_it() -> None:
    assert load({"PORT": "5000"}) == Settings(port=5000)
    assert load({"PORT": ""}) == Settings()


@pytest.mark.parametrize("text", ["port = 81", "listen = 'a:1'", "unix_socket = '/run/a'"])
def test_port_is_for_nobody_who_says_where_to_listen(text: str) -> None:
    own(text)
    assert load({"PORT": "5000"}) == load({})
    own("host = '::1'")
    assert load({"PORT": "5000"}) == Settings(host="::1", port=5000)


def test_a_port_that_is_none_is_an_error_where_it_counts() -> None:
    assert refusal({"PORT": "tcp://10.0.0.1:80"}) == "$PORT: port: 'tcp://10.0.0.1:80' is not a whole number"
    assert load({"PORT": "tcp://10.0.0.1:80"}, port=81).port == 81


# The environment.


def test_an_empty_variable_is_as_good_as_none() -> None:
    own("threads = 12\nident = 'a'")
    assert load(
        {"WAITRESS_ASYNC_THREADS": "", "WAITRESS_ASYNC_IDENT": "", "WAITRESS_ASYNC_CONFIG": ""}
    ) == Settings(threads=12, ident="a")


def test_variables_of_others_are_passed_over() -> None:
    environ = {
        "WAITRESS_THREADS": "9",
        "THREADS": "9",
        "XWAITRESS_ASYNC_THREADS": "9",
        "_WAITRESS_ASYNC_COMPLETE": "x",
    }
    assert load(environ) == Settings()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"WAITRESS_ASYNC_THREAD": "8"},
            "WAITRESS_ASYNC_THREAD: Unknown adjustment 'thread' (did you mean 'threads'?)",
        ),
        ({"WAITRESS_ASYNC_": "8"}, "WAITRESS_ASYNC_: Unknown adjustment ''"),
        ({"WAITRESS_ASYNC_THREADS": "many"}, "WAITRESS_ASYNC_THREADS: threads: 'many' is not a whole number"),
        (
            {"WAITRESS_ASYNC_IPV6": "perhaps"},
            "WAITRESS_ASYNC_IPV6: ipv6: 'perhaps' is neither true nor false",
        ),
        ({"WAITRESS_ASYNC_PORT": "65536"}, "WAITRESS_ASYNC_PORT: port: 65536 is more than 65535"),
        (
            {"WAITRESS_ASYNC_LOOP": "trio"},
            "WAITRESS_ASYNC_LOOP: loop: 'trio' is not one of auto, uvloop, asyncio",
        ),
    ],
)
def test_variables_that_are_wrong(environ: dict[str, str], message: str) -> None:
    assert refusal(environ) == message


# Files.


def test_the_file_may_be_another(folder: Path) -> None:
    own("threads = 12\nbacklog = 12")
    own("threads = 13", file="other.toml")
    own("threads = 14", file="third.toml")
    assert load({}, config="other.toml") == Settings(threads=13)  # instead of the usual one
    assert load({"WAITRESS_ASYNC_CONFIG": "other.toml"}) == Settings(threads=13)
    assert load({"WAITRESS_ASYNC_CONFIG": "other.toml"}, config="third.toml") == Settings(threads=14)
    assert load({}, config=str(folder / "third.toml")) == Settings(threads=14)
    assert printed_config("--config=other.toml") == {"threads": (13, "other.toml")}


def test_files_of_another_folder(folder: Path) -> None:
    (folder / "deploy").mkdir()
    own("threads = 12", file="deploy/waitress_async.toml")
    own("threads = 13", file="deploy/other.toml")
    assert Settings.load(directory="deploy", environ={}) == Settings(threads=12)
    assert Settings.load(directory=folder / "deploy", environ={}, config="other.toml") == Settings(threads=13)
    assert load({}) == Settings()


@pytest.mark.parametrize("file", ["pyproject.toml", "waitress_async.toml"])
def test_a_folder_of_that_name_is_no_file(file: str, folder: Path) -> None:
    (folder / file).mkdir()
    assert load({}) == Settings()


@pytest.mark.parametrize(
    "text", ["", "[project]\nname = 'a'", "[tool.other]\nthreads = 9", "tool = 5", "[tool]"]
)
def test_a_project_without_settings(text: str) -> None:
    own(text, file="pyproject.toml")
    assert load({}) == Settings()


def test_what_is_of_the_command_alone_is_checked_and_passed_over() -> None:
    own("app = 'a:b'\nlog-level = 'DEBUG'\nthreads = 9")
    assert load({"WAITRESS_ASYNC_CALL": "yes"}) == Settings(threads=9)
    own("log-level = 'loud'")
    assert refusal({}).startswith("waitress_async.toml: log_level: 'loud' is not one of debug, ")


def test_keys_may_have_dashes() -> None:
    own("max-queue = 9\nmax_request_header-size = '1 KiB'")
    assert load({}) == Settings(max_queue=9, max_request_header_size=1024)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thread = 8", "Unknown adjustment 'thread' (did you mean 'threads'?)"),
        ("max-que = 8", "Unknown adjustment 'max_que' (did you mean 'max_queue'?)"),
        ("[tool.waitress_async]", "Unknown adjustment 'tool'"),
        ("max-queue = 8\nmax_queue = 8", "max_queue is given twice"),
        ("threads = [8]", "threads: [8] is not a whole number"),
        ("threads = true", "threads: True is not a whole number"),
        ("threads = 1.5", "threads: 1.5 is not a whole number"),
        ("threads = 1979-05-27", "threads: datetime.date(1979, 5, 27) is not a whole number"),
        ("threads = 0", "threads: 0 is less than 1"),
        ("ident = 5", "ident: 5 is not a string"),
        ("listen = [80]", "listen: 80 is not a string"),
        ("listen = {host = 'a'}", "listen: {'host': 'a'} is not a list of strings"),
        ("trusted_proxy = {a = 1}", "trusted_proxy: {'a': 1} is not a list of strings"),
        ("channel_timeout = inf", "channel_timeout: inf is not a number"),
        ("ipv6 = 'perhaps'", "ipv6: 'perhaps' is neither true nor false"),
        (
            "max_request_body_size = '5 parsecs'",
            "max_request_body_size: '5 parsecs' is not in bytes, whose units",
        ),
        (
            "unix_socket_perms = 600",
            "unix_socket_perms: 600 is not a file mode such as 600: as a number, write",
        ),
    ],
)
def test_values_that_are_wrong_name_the_file_and_the_setting(text: str, message: str) -> None:
    own(text)
    assert refusal({}).startswith(f"waitress_async.toml: {message}")
    own(text, file="other.toml")
    assert refusal({}, config="other.toml").startswith(f"other.toml: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thread = 8", "Unknown adjustment 'thread' (did you mean 'threads'?)"),
        ("threads = 'x'", "threads: 'x' is not a whole number"),
    ],
)
def test_values_that_are_wrong_in_the_project(text: str, message: str) -> None:
    project(text)
    assert refusal({}) == f"pyproject.toml [tool.waitress_async]: {message}"


@pytest.mark.parametrize("name", ["waitress_async", "waitress-async"])
def test_both_spellings_of_our_name(name: str) -> None:
    """One is imported, the other is installed."""
    own(f"[tool.{name}]\nthreads = 9", file="pyproject.toml")
    assert printed_config() == {"threads": (9, f"pyproject.toml [tool.{name}]")}
    own("threads = 10", file=f"{name}.toml")
    assert printed_config() == {"threads": (10, f"{name}.toml")}
    own("[tool.waitress-async]\nthread = 8", file="pyproject.toml")
    assert refusal({}).startswith("pyproject.toml [tool.waitress-async]: Unknown adjustment 'thread' ")


def test_one_spelling_at_a_time() -> None:
    own("[tool.waitress-async]\n[tool.waitress_async]", file="pyproject.toml")
    assert refusal({}) == (
        "pyproject.toml [tool.waitress_async] and pyproject.toml [tool.waitress-async]: "
        "one of them only, for they are two names for the same"
    )
    own("", file="pyproject.toml")
    own("")
    own("", file="waitress-async.toml")
    assert refusal({}).startswith("waitress_async.toml and waitress-async.toml: one of them only")
    own("threads = 9", file="other.toml")
    assert load({}, config="other.toml") == Settings(threads=9)  # which is instead of either


def test_a_project_whose_settings_are_no_table() -> None:
    own("[tool]\nwaitress_async = 5", file="pyproject.toml")
    assert refusal({}) == "pyproject.toml [tool.waitress_async]: is not a table"


NO_TOML = {
    "a word": b"threads",
    "twice": b"threads = 1\nthreads = 2",
    "not UTF-8": b"ident = '\xff'",
    "an image": bytes(range(256)),
    "deep": b"listen = " + b"[" * 100_000,
}


@pytest.mark.parametrize("content", NO_TOML.values(), ids=NO_TOML)
@pytest.mark.parametrize("file", ["pyproject.toml", "waitress_async.toml", "other.toml"])
def test_what_is_not_toml(file: str, content: bytes) -> None:
    Path(file).write_bytes(content)
    assert refusal({}, config=file if file == "other.toml" else None).startswith(f"{file}: is not TOML: ")


@pytest.mark.parametrize("file", ["pyproject.toml", "waitress_async.toml", "other.toml"])
def test_a_file_of_any_size_is_not_read_to_its_end(file: str) -> None:
    with Path(file).open("wb") as large:
        large.truncate(1 << 40)
    assert (
        refusal({}, config=file if file == "other.toml" else None) == f"{file}: is larger than 1048576 bytes"
    )


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    assert refusal({}, config="/dev/zero") == "/dev/zero: is larger than 1048576 bytes"


def test_a_file_that_is_not_there_is_an_error_if_it_was_asked_for(folder: Path) -> None:
    assert refusal({}, config="missing.toml") == "missing.toml: No such file or directory"
    assert refusal({"WAITRESS_ASYNC_CONFIG": "missing.toml"}) == "missing.toml: No such file or directory"
    assert refusal({}, config=str(folder)) == f"{folder}: Is a directory"


# The library by itself reads nothing.


def test_files_and_environment_are_read_by_load_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("pyproject.toml", "waitress_async.toml"):
        Path(file).write_text("this is no TOML")
    for variable in (
        "WAITRESS_ASYNC_THREADS",
        "WAITRESS_ASYNC_CONFIG",
        "WAITRESS_ASYNC_NONSENSE",
        "PORT",
        "LISTEN_FDS",
    ):
        monkeypatch.setenv(variable, "nonsense")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert Settings() == Settings.from_keywords()
    assert (Settings().threads, Settings().places) == (4, (InternetPlace("0.0.0.0", 8080),))
    assert Settings.from_keywords(unix_socket="a").places == (UnixPlace("a"),)
    Server(demo_app)
    Server(demo_app, threads=8)
    assert refusal().startswith("pyproject.toml: is not TOML: ")
