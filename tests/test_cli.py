from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.settings.command import invoke, isolate, printed_config
from tests.settings.reference import PAGE
from tests.settings.samples import ALL, BY_NAME, TEXTUAL, flags_of
from waitress_async import Server, __version__
from waitress_async.cli import main
from waitress_async.server import Notifier
from waitress_async.settings import COMMAND_DECLARATIONS, Declaration, Settings

resource = pytest.importorskip("resource")

APP = "wsgiref.simple_server:demo_app"
ROOT = Path(__file__).parent.parent
TIMEOUT = 30  # seconds, for whatever a process is waited for


class Served:
    """What run() was called with; `error` is what it raises, after `meanwhile` was called."""

    app: Any = None
    settings: Settings | None = None
    notifier: Notifier | None = None
    reload: Callable[[], object] | None = None
    error: OSError | None = None
    meanwhile: Callable[[], object] | None = None

    def run(
        self,
        server: Server,
        settings: Settings,
        *,
        notifier: Notifier | None = None,
        reload: Callable[[], object] | None = None,
        is_program: bool = False,
    ) -> None:
        assert is_program
        self.app, self.settings, self.notifier, self.reload = server._app, settings, notifier, reload
        if self.meanwhile is not None:
            self.meanwhile()
        if self.error is not None:
            raise self.error


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The server is replaced, and what the command changes in its process is put back."""
    served = Served()
    monkeypatch.setattr("waitress_async.cli.run", served.run)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    logger = logging.getLogger("waitress_async")
    level = logger.level
    logger.setLevel(logging.NOTSET)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield served
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    logger.setLevel(level)
    if served.notifier is not None:
        served.notifier.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which there is nothing."""
    isolate(monkeypatch, tmp_path)
    return tmp_path


def error_of(*arguments: str) -> str:
    """The last line of a usage error."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in the working directory, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "waitress_async", *arguments],
        env=environment(**variables),
        capture_output=True,
        check=False,
        text=True,
        timeout=TIMEOUT,
    )


# Settings and the app.


@pytest.mark.parametrize("declaration", TEXTUAL, ids=lambda declaration: declaration.name)
def test_help_tells_flag_and_default(declaration: Declaration) -> None:
    words = " ".join(invoke("--help").stdout.split())
    assert declaration.flag is not None
    assert declaration.flag.replace("/", " / ") in words
    effect = "No effect here: " if declaration.without_effect else ""
    assert f" {effect}{declaration.help} [default: {declaration.default_text}]" in words
    assert f"No effect here: {declaration.help}" not in words or declaration.without_effect


def test_nothing_given_is_the_defaults(served: Served) -> None:
    result = invoke(APP)
    assert (result.exit_code, result.output) == (0, "")
    assert served.settings == Settings()
    assert served.app.__name__ == "demo_app"
    assert (served.notifier, served.reload) == (None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads=8", "--port", "0", APP],
        [APP, "--threads=8", "--port", "0"],
        ["--threads=8", APP, "--port=0"],
        ["--threads=8", "--port=0", f"--app={APP}"],
        ["--threads=8", "--port=0", "--", APP],
    ],
)
def test_options_stand_before_and_after_the_app(arguments: list[str], served: Served) -> None:
    assert invoke(*arguments).exit_code == 0
    assert served.settings == Settings(threads=8, port=0)
    assert served.app.__name__ == "demo_app"


def test_a_list_may_be_repeated(served: Served) -> None:
    assert invoke("--listen=localhost:1 localhost:2", "--listen", "[::1]:3", APP).exit_code == 0
    assert served.settings is not None
    assert served.settings.listen == ("localhost:1", "localhost:2", "[::1]:3")


def test_a_flag_may_be_unset(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAITRESS_ASYNC_EXPOSE_TRACEBACKS", "yes")
    assert invoke("--expose-tracebacks", "--no-expose-tracebacks", APP).exit_code == 0
    assert served.settings == Settings()


def test_an_empty_ident_is_none(served: Served) -> None:
    assert invoke("--ident=", APP).exit_code == 0
    assert served.settings == Settings(ident=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "four", APP], "Invalid value for '--threads': 'four' is not a whole number"),
        (["--threads", "0", APP], "Invalid value for '--threads': 0 is less than 1"),
        ([APP, "--loop", "trio"], "Invalid value for '--loop': 'trio' is not one of auto, uvloop, asyncio"),
        (["--listen", "a:1", "--listen", "b:c", APP], "Invalid value for '--listen': Invalid host/port"),
        (
            ["--listen", "a:1", "--port", "8080", APP],
            "--listen, --port: host or port may not be set if listen",
        ),
        (
            ["--trusted-proxy-count=2", APP],
            "trusted_proxy_count has no meaning without setting trusted_proxy",
        ),
        (["--config=missing.toml", APP], "missing.toml: No such file or directory"),
        ([], "Specify an application, such as shop.web:app"),
        (["--check-config"], "Specify an application"),
        (["--listen=8000", APP], "Invalid value for '--listen': Invalid host/port specified. '8000' is not"),
        ([APP, APP], "Provide only one WSGI app"),
        ([APP, "--app", APP], "Provide only one WSGI app"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, served: Served) -> None:
    assert error_of(*arguments).startswith(message)
    assert served.settings is None


@pytest.mark.parametrize(("flag", "meant"), [("--thread=4", "--threads"), ("--lissen=a", "--listen")])
def test_an_unknown_flag_gets_a_hint(flag: str, meant: str) -> None:
    message = error_of(flag, APP)
    assert flag.partition("=")[0] in message
    assert meant in message


@pytest.fixture
def shop(folder: Path) -> Iterator[Any]:
    """A module in the working directory; call it for what was imported."""
    (folder / "cli_shop.py").write_text("def app(a, b): pass\ndef make(*name): return lambda a, b: name\n")
    yield lambda: sys.modules["cli_shop"]
    sys.modules.pop("cli_shop", None)


def test_the_working_directory_is_searched_and_a_factory_called(served: Served, shop: Any) -> None:
    assert invoke("cli_shop:make", "--call").exit_code == 0
    assert served.app(None, None) == ()
    assert invoke("cli_shop:make('a')").exit_code == 0
    assert served.app(None, None) == ("a",)
    assert invoke("cli_shop:app").exit_code == 0
    assert served.app is shop().app


def test_another_folder_is_searched(served: Served, folder: Path) -> None:
    (folder / "src").mkdir()
    (folder / "src" / "cli_elsewhere.py").write_text("def app(a, b): pass\n")
    assert invoke("cli_elsewhere:app", "--app-dir=src").exit_code == 0
    assert served.app is sys.modules.pop("cli_elsewhere").app


def test_the_app_may_stand_in_a_file(served: Served, shop: Any, folder: Path) -> None:
    (folder / "pyproject.toml").write_text(
        "[tool.waitress_async]\napp = 'cli_shop:make'\ncall = true\nthreads = 8"
    )
    assert invoke().exit_code == 0
    assert served.app(None, None) == ()
    assert served.settings == Settings(threads=8)
    assert invoke("cli_shop:app", "--no-call").exit_code == 0
    assert served.app is shop().app
    assert invoke("--app=cli_shop:app", "--no-call").exit_code == 0
    assert served.app is shop().app


def test_the_app_may_be_a_variable(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAITRESS_ASYNC_APP", APP)
    assert invoke().exit_code == 0
    assert served.app.__name__ == "demo_app"


def test_an_address_that_cannot_be_had_is_one_line(served: Served) -> None:
    served.error = OSError(errno.EADDRINUSE, "Cannot listen on 127.0.0.1:8080: Address already in use")
    result = invoke(APP)
    assert result.exit_code == 1
    assert result.stderr == "Error: Cannot listen on 127.0.0.1:8080: Address already in use\n"


class Unraisable:
    """`error` cannot be raised where it happens: Python tells a hook of it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_what_cannot_be_raised_is_still_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for names that are not ASCII: tests/frameworks/test_tls_command.py."""
    told: list[object] = []

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        told.append(unraisable.exc_value)

    errors = [ValueError(), UnicodeDecodeError("ascii", b"\xff", 0, 1, "not in range")]

    def meanwhile() -> None:
        for error in errors:
            Unraisable(error)

    monkeypatch.setattr(sys, "unraisablehook", hook)
    served.meanwhile = meanwhile
    assert invoke(APP).exit_code == 0
    assert told == errors
    assert sys.unraisablehook is hook


def test_as_many_files_as_the_system_allows(served: Served) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    assert invoke(APP).exit_code == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


# --print-config, --check-config, --version, completion.


def test_each_setting_is_printed_once_with_where_it_comes_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "waitress_async.toml").write_text("max-queue = 9\nident = 'a # b'")
    monkeypatch.setenv("WAITRESS_ASYNC_IPV6", "no")
    monkeypatch.setenv("PORT", "5000")
    result = invoke("--print-config", "--threads=8", "cli_shop:app")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.removeprefix("# ").partition(" = ")[0] for line in lines] == sorted(
        (declaration.name for declaration in TEXTUAL),
        key=[d.name for d in [*COMMAND_DECLARATIONS, *ALL]].index,
    )
    given = {line.partition(" = ")[0]: " ".join(line.split()) for line in lines if not line.startswith("#")}
    assert given == {
        "app": 'app = "cli_shop:app" # argument',
        "port": "port = 5000 # $PORT",
        "ipv6": "ipv6 = false # WAITRESS_ASYNC_IPV6",
        "threads": "threads = 8 # --threads",
        "max_queue": "max_queue = 9 # waitress_async.toml",
        "ident": 'ident = "a # b" # waitress_async.toml',
    }
    defaults = {" ".join(line.split()) for line in lines if line.startswith("#")}
    assert "# unix_socket_perms = 0o600 # default" in defaults
    assert "# listen = [] # default" in defaults
    assert '# tmp_dir = "" # default' in defaults
    assert "# channel_timeout = 120.0 # default" in defaults


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
WORDS = st.lists(PRINTABLE.map(lambda word: f"/{word}"), max_size=3).map(" ".join)
CHOSEN = st.fixed_dictionaries(
    {},
    optional={
        "app": ANY_TEXT,
        "call": st.booleans(),
        "log_level": st.sampled_from(BY_NAME["log_level"].choices),
        "host": st.sampled_from(["::1", "*", "bücher.example"]),
        "port": st.integers(0, 65535),
        "ipv6": st.booleans(),
        "trusted_proxy": st.lists(st.ip_addresses().map(str), max_size=3).map(" ".join),
        "unix_socket_perms": st.integers(0, 0o777).map("{:o}".format),
        "unix_socket_owner": ANY_TEXT,
        "tmp_dir": ANY_TEXT,
        "ident": PRINTABLE,
        "url_prefix": PRINTABLE,
        "stream_request_prefix": WORDS,
        "spare_threads": st.just("") | st.integers(0, 10**30),
        "spool_limit": st.integers(0, 10**30),
        "channel_timeout": st.floats(0, 31_536_000),
        "loop": st.sampled_from(BY_NAME["loop"].choices),
    },
)


@given(chosen=CHOSEN)
@settings(deadline=None)
@example(chosen={"tmp_dir": "\"\\\x00\x07\n\r\t\x7f\x80\u2028\U0001f600 # = '''", "app": '"""'})
def test_what_is_printed_is_a_file_that_gives_the_same(chosen: dict[str, object]) -> None:
    flags = [flag for name, value in chosen.items() for flag in flags_of(name, value)]
    result = invoke("--print-config", *flags)
    assert result.exit_code == 0
    Path("again.toml").write_text(result.stdout, encoding="utf-8", newline="")
    printed, again = printed_config(*flags), printed_config("--config=again.toml")
    assert again == {name: (value, "again.toml") for name, (value, _) in printed.items()}
    assert again.keys() == chosen.keys()
    given_to_servers = {name: value for name, value in chosen.items() if name in Settings.__slots__}
    assert Settings.load(config="again.toml", environ={}) == Settings.from_keywords(**given_to_servers)


def test_a_path_that_toml_cannot_say_is_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAITRESS_ASYNC_TMP_DIR", "/a\udcff")  # the byte FF
    result = invoke("--print-config")
    assert result.exit_code == 0
    assert '\ntmp_dir = "/a\\udcff" ' in result.stdout
    Path("again.toml").write_text(result.stdout)
    monkeypatch.delenv("WAITRESS_ASYNC_TMP_DIR")
    assert error_of("--config=again.toml").startswith("again.toml: is not TOML: ")


def test_the_name_of_a_file_stays_in_its_line(folder: Path) -> None:
    (folder / "a\nb\u2028c.toml").write_text("threads = 8")
    assert printed_config("--config=a\nb\u2028c.toml") == {"threads": (8, "a\\u000ab\\u2028c.toml")}


def test_print_config_imports_nothing_but_checks_the_settings(served: Served) -> None:
    assert invoke("--print-config", "missing:app").exit_code == 0
    assert error_of("--print-config", "--trusted-proxy-count=2").startswith(
        "trusted_proxy_count has no meaning"
    )
    assert served.settings is None


def test_check_config(served: Served) -> None:
    result = invoke("--check-config", APP, "--threads=8")
    assert (result.exit_code, result.output) == (0, f"{APP} can be served\n")
    assert served.settings is None


def test_the_settings_are_printed_and_checked(served: Served) -> None:
    """Both are done: what is printed is a file, and so says only what a file can say."""
    flags = ["--print-config", "--check-config", "--threads=8"]
    result = invoke(*flags, APP)
    assert (result.exit_code, result.stderr) == (0, f"{APP} can be served\n")
    assert result.stdout == invoke("--print-config", "--threads=8", APP).stdout
    result = invoke(*flags, "missing:app")
    assert (result.exit_code, result.stdout.count("missing:app")) == (1, 1)
    assert "No module named 'missing'" in result.stderr
    assert "Specify an application" in invoke(*flags).stderr
    assert served.settings is None


def test_check_config_tries_the_folder_of_temporary_files(served: Served, folder: Path) -> None:
    assert invoke("--check-config", APP, f"--tmp-dir={folder}").exit_code == 0
    result = invoke("--check-config", APP, "--tmp-dir=missing")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: No such file or directory: temporary files cannot be made in 'missing' (setting: tmp_dir)\n"
    )
    assert list(folder.iterdir()) == []


def test_check_config_tries_the_certificates(served: Served, folder: Path) -> None:
    """It takes good ones: tests/settings/test_secret.py."""
    result = invoke("--check-config", APP, "--certfile=missing.pem")
    assert (result.exit_code, result.stdout) == (1, "")
    path = str(folder / "missing.pem")
    assert result.stderr == f"Error: Cannot read certfile {path!a}: No such file or directory\n"
    (folder / "cert.pem").write_text("nothing")
    assert error_of("--check-config", APP, "--certfile=cert.pem") == (
        f"certfile {str(folder / 'cert.pem')!a} holds no certificate in PEM"
    )
    assert served.settings is None


def test_check_config_imports_the_app(served: Served) -> None:
    result = invoke("--check-config", "missing:app")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Cannot import WSGI application 'missing:app': No module named 'missing'" in result.stderr
    result = invoke("--check-config", "wsgiref.simple_server:software_version")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not callable" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads=0"], "Invalid value for '--threads'"),
        (["--trusted-proxy-count=2"], "trusted_proxy_count has no meaning"),
        (["--log-config=missing.toml"], "log_config: missing.toml: No such file or directory"),
    ],
)
def test_check_config_checks_all(arguments: list[str], message: str, served: Served) -> None:
    assert error_of("--check-config", APP, *arguments).startswith(message)


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"waitress-async, version {__version__}\n")


def completed(shell_does: str, words: str = "", number: int = 0) -> str:
    environ = {"_WAITRESS_ASYNC_COMPLETE": shell_does, "COMP_WORDS": words, "COMP_CWORD": str(number)}
    result = CliRunner(env=environ).invoke(main, [], prog_name="waitress-async")
    assert result.exit_code in (0, 1)  # click ends with 1 after a script of some shells
    return result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert f"_WAITRESS_ASYNC_COMPLETE={shell}_complete" in completed(f"{shell}_source")
    assert f"_WAITRESS_ASYNC_COMPLETE={shell}_source waitress-async" in PAGE.read_text(encoding="utf-8")


def test_completion_of_flags_choices_and_files() -> None:
    assert "\n--max-queue\n" in completed("zsh_complete", "waitress-async --max", 1)
    assert completed("zsh_complete", "waitress-async --loop uv", 2).split() == ["plain", "uvloop", "_"]
    assert completed("zsh_complete", "waitress-async --log-config logging.t", 2).split() == [
        "file",
        "logging.t",
        "_",
    ]
    assert completed("zsh_complete", "waitress-async --tmp-dir /v", 2).split() == ["dir", "/v", "_"]
    assert completed("zsh_complete", "waitress-async --config a", 2).split() == ["file", "a", "_"]


# systemd.


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One socket is passed to this process, by what it is told."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")


@pytest.mark.usefixtures("passed")
@pytest.mark.parametrize("port", ["", "5000"])
def test_sockets_of_systemd_are_listened_on(
    port: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", port)
    result = invoke(APP)
    assert (result.exit_code, result.output) == (0, "")
    assert served.settings == Settings(listen=("systemd://",))
    assert printed_config() == {"listen": (["systemd://"], "$LISTEN_FDS")}


@pytest.mark.usefixtures("passed")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host=::1"], "host (--host)"),
        (["--host=::1", "--port=81"], "host (--host), port (--port)"),
        (["--listen=localhost:81"], "listen (--listen)"),
        (["--unix-socket=/run/a"], "unix_socket (--unix-socket)"),
    ],
)
def test_who_says_otherwise_has_it_with_a_warning(arguments: list[str], told: str, served: Served) -> None:
    result = invoke(APP, *arguments)
    assert result.exit_code == 0
    assert result.stderr == f"Warning: sockets passed by systemd are not used, because of: {told}\n"
    assert served.settings is not None
    assert served.settings.listen in ((), ("localhost:81",))


@pytest.mark.usefixtures("passed")
def test_the_warning_names_the_file(served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "waitress-async.toml").write_text("port = 81")
    monkeypatch.setenv("WAITRESS_ASYNC_HOST", "::1")
    result = invoke(APP)
    assert result.exit_code == 0
    assert result.stderr == (
        "Warning: sockets passed by systemd are not used, because of: "
        "host (WAITRESS_ASYNC_HOST), port (waitress-async.toml)\n"
    )
    assert served.settings == Settings(host="::1", port=81)


@pytest.mark.usefixtures("passed")
@pytest.mark.parametrize("listen", ["systemd://", "systemd://web", "localhost:81 systemd://", "fd://3"])
def test_who_names_them_gets_no_warning(listen: str, served: Served) -> None:
    result = invoke(APP, f"--listen={listen}")
    assert (result.exit_code, result.output) == (0, "")
    assert served.settings == Settings.from_keywords(listen=listen)


def test_sockets_for_another_process_are_none(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert invoke(APP).exit_code == 0
    assert served.settings == Settings()


@pytest.mark.usefixtures("passed")
def test_malformed_variables_of_systemd(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "0")
    assert error_of(APP) == "LISTEN_FDS is 0, and must be between 1 and 1024"
    monkeypatch.delenv("LISTEN_FDS")
    monkeypatch.setenv("NOTIFY_SOCKET", "relative")
    assert error_of(APP) == "NOTIFY_SOCKET is neither an absolute path nor an abstract name"


def test_the_manager_is_told(served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
    assert invoke(APP).exit_code == 0
    assert served.notifier is not None


# Logging. The root logger and its handlers are the tests' own: configurations here are incremental.


def write(file: str, content: object) -> None:
    if isinstance(content, bytes):
        Path(file).write_bytes(content)
    elif file.endswith(".json"):
        Path(file).write_text(json.dumps(content))
    else:
        Path(file).write_text(str(content))


LEVELS = {
    "log.json": {"incremental": True, "loggers": {"waitress_async": {"level": "ERROR"}}},
    "log.toml": "incremental = true\nloggers.waitress_async.level = 'ERROR'",
    "log.conf": "incremental = true\nloggers.waitress_async.level = 'ERROR'",
}


def level() -> str:
    return logging.getLevelName(logging.getLogger("waitress_async").level)


@pytest.mark.parametrize(
    ("arguments", "found", "expected"),
    [
        ([], logging.NOTSET, "INFO"),
        ([], logging.ERROR, "ERROR"),  # by the app
        (["--log-level=debug"], logging.NOTSET, "DEBUG"),
        (["--log-level=WARNING"], logging.ERROR, "WARNING"),
    ],
)
def test_the_level(arguments: list[str], found: int, expected: str, served: Served) -> None:
    logging.getLogger("waitress_async").setLevel(found)
    assert invoke(APP, *arguments).exit_code == 0
    assert level() == expected


@pytest.mark.parametrize(
    ("arguments", "own", "expected"),
    [
        ([], 0, 0.001),
        (["--switch-interval=2ms"], 0, 0.002),
        (["--switch-interval=0"], 0, 0.005),
        (["--switch-interval=2ms"], 0.01, 0.01),  # the app's
    ],
)
def test_how_often_threads_take_turns(
    arguments: list[str], own: float, expected: float, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the process, and so of the command alone; what the app sets stands."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    Path("own_interval.py").write_text(
        f"import sys\nif {own}: sys.setswitchinterval({own})\ndef app(*_): return []\n"
    )
    monkeypatch.delitem(sys.modules, "own_interval", raising=False)
    try:
        assert invoke("own_interval:app", *arguments).exit_code == 0
        assert sys.getswitchinterval() == pytest.approx(expected)
    finally:
        sys.setswitchinterval(before)
        sys.modules.pop("own_interval", None)


@pytest.mark.parametrize("file", LEVELS)
def test_a_file_configures_logging_and_the_flag_goes_before_it(file: str, served: Served) -> None:
    write(file, LEVELS[file])
    for flag, expected in (([], "ERROR"), (["--log-level=debug"], "DEBUG")):
        assert invoke(APP, f"--log-config={file}", *flag).exit_code == 0
        assert level() == expected
        logging.getLogger("waitress_async").setLevel(logging.NOTSET)
        assert served.reload is not None
        served.reload()
        assert level() == expected


def test_a_file_that_is_broken_when_it_is_read_again_changes_nothing(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    write("log.toml", LEVELS["log.toml"])
    assert invoke(APP, "--log-config=log.toml").exit_code == 0
    write("log.toml", "incremental = ")
    assert served.reload is not None
    served.reload()
    assert level() == "ERROR"
    assert "log_config: log.toml: Invalid value" in caplog.text
    assert "logging stays as it is" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("log.json", b"{", "Expecting property name enclosed in double quotes"),
        ("log.json", [1], "it is not a table"),
        ("log.json", b"\xff{}", "'utf-8' codec can't decode"),
        ("log.json", b"[" * 100_000, "maximum recursion depth exceeded"),
        ("log.json", {"version": 2}, "Unsupported version: 2"),
        ("log.toml", "[loggers", "Expected ']'"),
        ("log.toml", b"\xff", "'utf-8' codec can't decode"),
        ("log.toml", "incremental = true\nloggers.a.level = 'X'", "Unable to configure logger 'a': Unknown"),
        ("log.toml", "version = 2", "Unsupported version: 2"),
        ("log.toml", "incremental = true\nloggers = 5", "'int' object is not iterable"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_configure_logging(
    file: str, content: object, reason: str, served: Served
) -> None:
    write(file, content)
    assert error_of(APP, f"--log-config={file}").startswith(f"log_config: {file}: {reason}")
    assert served.settings is None


def test_a_file_of_any_size_is_not_read_to_its_end(folder: Path) -> None:
    with (folder / "log.toml").open("wb") as large:
        large.truncate(1 << 40)
    assert error_of(APP, "--log-config=log.toml") == "log_config: log.toml: is larger than 1048576 bytes"


# The real command.


def test_a_module_that_is_missing() -> None:
    result = command("missing:app")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "Cannot import WSGI application 'missing:app': No module named 'missing'",
    ]


def test_a_module_that_fails_to_import_shows_its_own_traceback(folder: Path) -> None:
    (folder / "broken.py").write_text("import helper\n")
    (folder / "helper.py").write_text("import not_there\n")
    result = command("broken:app")
    assert (result.returncode, result.stdout) == (1, "")
    first, second, *rest = result.stderr.splitlines()
    assert first == (
        "Cannot import WSGI application 'broken:app': "
        "importing 'broken' raised ModuleNotFoundError: No module named 'not_there'"
    )
    assert second == "Traceback (most recent call last):"
    assert [line.strip() for line in rest if not line.startswith("  File")] == [
        "import helper",
        "import not_there",
        "ModuleNotFoundError: No module named 'not_there'",
    ]
    assert "waitress_async" not in "".join(rest)


def test_python_m_names_itself() -> None:
    result = command("--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: python -m waitress_async [OPTIONS] [MODULE:OBJECT]\n")


def test_the_real_command_reads_all_sources(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(f"[tool.waitress_async]\napp = '{APP}'")
    (folder / "waitress_async.toml").write_text("log-config = 'logging.toml'")
    example_of_the_page = (
        PAGE.read_text(encoding="utf-8").partition("# logging.toml\n")[2].partition("```")[0]
    )
    (folder / "logging.toml").write_text(example_of_the_page)
    result = command("--check-config", WAITRESS_ASYNC_THREADS="8")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{APP} can be served\n", "")
    result = command("--check-config", WAITRESS_ASYNC_THREADS="many")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("\nError: WAITRESS_ASYNC_THREADS: threads: 'many' is not a whole number\n")


def test_a_place_in_use_is_one_line_that_names_it(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("a.sock")
        unix.listen()
        port = taken.getsockname()[1]
        for place in (f"127.0.0.1:{port}", f"unix:{folder}/a.sock"):
            result = command(APP, "--listen=127.0.0.1:0", f"--listen={place}")
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr == f"Error: Cannot listen on {place}: Address already in use\n"
    assert (folder / "a.sock").exists()


def test_a_log_configuration_that_fails_halfway_leaves_the_one_before(folder: Path) -> None:
    """What is wrong with a handler is found when those before are gone already. In a process of its own."""
    (folder / "log.toml").write_text(
        "formatters.plain.format = 'A %(message)s'\n"
        "handlers.stderr = {class = 'logging.StreamHandler', formatter = 'plain'}\n"
        "root = {level = 'INFO', handlers = ['stderr']}\n"
    )
    (folder / "program.py").write_text(
        "import pathlib, sys\n"
        "from waitress_async import cli\n"
        "def run(server, settings, *, notifier, reload, is_program):\n"
        "    file = pathlib.Path('log.toml')\n"
        "    file.write_text(file.read_text().replace('StreamHandler', 'NoSuchHandler'))\n"
        "    reload()\n"
        "    cli.logger.info('still here')\n"
        "    text = file.read_text().replace('NoSuchHandler', 'StreamHandler')\n"
        "    file.write_text(text.replace('A ', 'B '))\n"
        "    reload()\n"
        "cli.run = run\n"
        f"cli.main(['--log-config=log.toml', '{APP}'])\n"
    )
    result = subprocess.run(
        [sys.executable, "program.py"],
        env=environment(),
        capture_output=True,
        check=True,
        text=True,
        timeout=TIMEOUT,
    )
    first, *others = result.stderr.splitlines()
    assert first.startswith("A log_config: log.toml: Unable to configure handler 'stderr': ")
    assert first.endswith(": logging stays as it is")
    assert others == ["A still here", "B Logging is configured anew by log.toml"]


def test_what_systemd_starts_serves_on_its_socket_and_configures_logging_anew(folder: Path) -> None:
    """systemd's convention: the descriptor is 3, and the process is the one that was started."""
    (folder / "log.toml").write_text(
        "formatters.plain.format = 'A %(message)s'\n"
        "handlers.stderr = {class = 'logging.StreamHandler', formatter = 'plain'}\n"
        "root = {level = 'INFO', handlers = ['stderr']}\n"
    )
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    arguments = ["-m", "waitress_async", APP, "--log-config=log.toml"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(listening.fileno()), *arguments],
            pass_fds=[listening.fileno()],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        end_anyway = threading.Timer(TIMEOUT, process.kill)
        end_anyway.start()
        with process:
            try:
                assert process.stderr is not None
                assert process.stderr.readline() == f"A Serving on {url}\n"
                assert requests.get(url, timeout=TIMEOUT).text.startswith("Hello world!")
                config = (folder / "log.toml").read_text()
                (folder / "log.toml").write_text(config.replace("'A ", "'B "))
                process.send_signal(signal.SIGHUP)
                assert process.stderr.readline() == "B Logging is configured anew by log.toml\n"
            finally:
                process.terminate()
                status = process.wait()
                end_anyway.cancel()
    assert status == 0
