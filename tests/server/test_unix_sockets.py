"""Unix socket files, as the system has them: modes, owners, stale ones, rivals, and what is left behind."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.server.support import nothing_left
from waitress_async.server.unix_sockets import SocketFile, bind_unix, parse_owner, unix_address

ROOT = Path(__file__).parents[2]
NOBODY = 65534

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@contextmanager
def short_folder() -> Iterator[str]:
    """pytest's own folders have paths that are too long for a socket."""
    folder = tempfile.mkdtemp(prefix="wa-")
    os.chmod(folder, 0o777)  # for tests that become somebody else
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[str]:
    with short_folder() as path:
        yield path


@pytest.fixture
def path(folder: str) -> str:
    return f"{folder}/s"


def bind(
    path: str, permissions: int = 0o600, owner: tuple[int, int] | None = None
) -> tuple[socket.socket, SocketFile]:
    sock, file = bind_unix(path, permissions=permissions, owner=owner)
    assert file is not None
    return sock, file


@dataclass
class Refusal:
    errno: int
    reason: str


def refusal(path: str) -> Refusal:
    """Why a path cannot be bound, as the caller is told. Nothing is left open."""
    with nothing_left(), pytest.raises(OSError) as caught:  # noqa: PT011  each caller looks closer
        bind(path)
    code, reason = caught.value.errno, caught.value.strerror
    assert code
    assert reason
    assert not path or path in (".", "/") or path not in reason
    return Refusal(code, reason)


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def leave_stale(path: str) -> os.stat_result:
    """What a server that was killed leaves behind."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    return os.lstat(path)


def listen(path: str, backlog: int = 1) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(backlog)
    return sock


# What a script needs to become somebody else, after its imports, and to report an error.
PRELUDE = f"""
import errno, json, os, socket, stat, sys
from waitress_async.server.unix_sockets import bind_unix

path, *arguments = sys.argv[1:]

def be_nobody():
    if os.geteuid() == 0:
        os.setegid({NOBODY})
        os.seteuid({NOBODY})

def attempt(**options):
    options = {{"permissions": 0o600, "owner": None, **options}}
    try:
        return bind_unix(path, **options)
    except OSError as error:
        return [error.errno, error.strerror]

def descriptors():
    return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
"""


def run(script: str, *arguments: str) -> Any:
    """What a script prints as JSON. Its process is its own, for its umask, its user and its audit hooks."""
    command = [sys.executable, "-c", PRELUDE + script, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# -- permissions and owner


def test_a_client_can_connect_once_it_listens_and_not_before(path: str) -> None:
    sock, file = bind(path, 0o666)
    with sock, socket.socket(socket.AF_UNIX) as client:
        assert client.connect_ex(path) == errno.ECONNREFUSED
        sock.listen()
        assert client.connect_ex(path) == 0
        assert sock.getsockname() == path == file.path
        assert not sock.get_inheritable()
        assert sock.type == socket.SOCK_STREAM


@linux_only
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o660, 0])
def test_linux_makes_a_socket_file_with_the_mode_of_the_socket(path: str, mode: int) -> None:
    """What `bind_unix` builds on (unix_bind in net/unix/af_unix.c), under a umask that takes nothing away."""
    script = """
os.umask(0)
sock = socket.socket(socket.AF_UNIX)
os.fchmod(sock.fileno(), int(arguments[0]))
sock.bind(path)
print(stat.S_IMODE(os.lstat(path).st_mode))
"""
    assert run(script, path, str(mode)) == mode


def test_the_mode_is_what_was_asked_for_and_never_wider_whatever_the_umask(folder: str) -> None:
    """An audit hook looks at each file between its making and the first step that follows."""
    script = """
born = []
def hook(event, arguments):
    if event == "os.chmod" and arguments[0] == path:
        born.append(stat.S_IMODE(os.lstat(path).st_mode))
sys.addaudithook(hook)
folder, found = path, []
for umask in (0, 0o022, 0o077, 0o777):
    for permissions in (0o600, 0o660, 0o666, 0o777, 0o020, 0):
        path = f"{folder}/{umask}-{permissions}"
        os.umask(umask)
        sock, file = bind_unix(path, permissions=permissions, owner=None)
        assert os.umask(umask) == umask
        found.append((umask, permissions, born.pop(), stat.S_IMODE(os.lstat(path).st_mode)))
        assert not born
print(json.dumps(found))
"""
    found = run(script, folder)
    assert isinstance(found, list)
    assert len(found) == 24
    for umask, permissions, born, final in found:
        assert final == permissions
        if sys.platform == "linux":
            assert born == permissions & 0o600 & ~umask


def test_where_the_mode_of_a_socket_cannot_be_set_the_file_gets_it_all_the_same(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_descriptor: int, _mode: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")  # macOS

    monkeypatch.setattr(os, "fchmod", refused)
    sock, _ = bind(path, 0o640)
    with sock:
        assert mode_of(path) == 0o640


@root_only
@pytest.mark.parametrize(
    ("owner", "expected"),
    [((12345, 23456), (12345, 23456)), ((-1, 23456), (0, 23456)), ((12345, -1), (12345, 0))],
)
def test_the_owner(path: str, owner: tuple[int, int], expected: tuple[int, int]) -> None:
    sock, _ = bind(path, 0o660, owner)
    with sock:
        found = os.lstat(path)
        assert (found.st_uid, found.st_gid) == expected
        assert mode_of(path) == 0o660


def test_a_file_can_be_given_to_oneself(path: str) -> None:
    sock, _ = bind(path, 0o660, (os.geteuid(), os.getegid()))
    with sock:
        assert os.lstat(path).st_uid == os.geteuid()


def test_a_file_that_cannot_be_given_away_is_not_left_behind(path: str) -> None:
    script = """
be_nobody()
before = descriptors()
error = attempt(owner=(0, 0))
print(json.dumps([error, os.path.lexists(path), before == descriptors()]))
"""
    (code, reason), exists, closed = run(script, path)
    assert code == errno.EPERM
    assert "0:0" in reason
    assert not exists
    assert closed


@root_only
def test_a_symbolic_link_that_the_new_owner_puts_in_place_is_not_followed(folder: str, path: str) -> None:
    """In a sticky directory an owner may replace the file: nothing that follows links may come after that."""
    script = """
victim, = arguments
events = []
def hook(event, details):
    if event in ("os.chmod", "os.chown") and details[0] == path:
        events.append(event)
        if event == "os.chown":
            os.unlink(path)
            os.symlink(victim, path)
sys.addaudithook(hook)
attempt(permissions=0o666, owner=(12345, 12345))
print(json.dumps(events))
"""
    victim = f"{folder}/victim"
    Path(victim).write_text("secret")
    os.chmod(victim, 0o600)
    assert run(script, path, victim) == ["os.chmod", "os.chown"]
    assert mode_of(victim) == 0o600
    assert os.lstat(victim).st_uid == 0


# -- what is there already


def test_a_stale_file_is_replaced(path: str) -> None:
    leave_stale(path)
    sock, file = bind(path)
    with sock, socket.socket(socket.AF_UNIX) as client:
        sock.listen()
        assert client.connect_ex(path) == 0
        assert file.inode == os.lstat(path).st_ino


def test_a_stale_datagram_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
    bind(path)[0].close()


def test_a_live_listener_is_left_alone(path: str) -> None:
    with listen(path) as other:
        before = os.lstat(path)
        assert refusal(path).errno == errno.EADDRINUSE
        assert os.lstat(path) == before
        with socket.socket(socket.AF_UNIX) as client:
            other.setblocking(False)
            other.accept()[0].close()  # the question
            client.connect(path)
            other.accept()[0].close()


@linux_only
def test_a_live_listener_with_a_full_backlog_is_left_alone(path: str) -> None:
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    with listen(path, 0):
        for client in clients:
            client.setblocking(False)
        assert [client.connect_ex(path) for client in clients][-1] == errno.EAGAIN
        assert refusal(path).errno == errno.EADDRINUSE
        assert os.path.exists(path)
        for client in clients:
            client.close()


def test_a_live_socket_of_another_kind_is_left_alone(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        assert refusal(path).errno == errno.EADDRINUSE
        assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "directory", "pipe"])
def test_what_is_not_a_socket_is_left_alone(path: str, kind: str) -> None:
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "directory":
        os.mkdir(path)
    else:
        os.mkfifo(path)
    before = os.lstat(path)
    error = refusal(path)
    assert error.errno == errno.EEXIST
    assert "not a socket" in error.reason
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)


@pytest.mark.parametrize("target", ["nothing", "file", "stale socket", "itself"])
def test_a_symbolic_link_is_left_alone(folder: str, path: str, target: str) -> None:
    end = path if target == "itself" else f"{folder}/target"
    if target == "file":
        Path(end).write_text("precious")
    elif target == "stale socket":
        leave_stale(end)
    os.symlink(end, path)
    listing = sorted(os.listdir(folder))
    error = refusal(path)
    assert error.errno == errno.EEXIST
    assert "symbolic link" in error.reason
    assert os.readlink(path) == end
    assert sorted(os.listdir(folder)) == listing


def test_a_stale_socket_that_may_not_be_asked_is_left_alone(path: str) -> None:
    leave_stale(path)
    os.chmod(path, 0)
    code, reason = run("be_nobody()\nprint(json.dumps(attempt()))", path)
    assert code == errno.EADDRINUSE
    assert os.strerror(errno.EACCES) in reason
    assert os.path.exists(path)


@root_only
def test_a_stale_socket_that_may_not_be_removed_is_named_as_that(folder: str, path: str) -> None:
    leave_stale(path)
    os.chmod(path, 0o666)
    os.chmod(folder, 0o1777)  # like /tmp
    code, reason = run("be_nobody()\nprint(json.dumps(attempt()))", path)
    assert code == errno.EPERM
    assert "nobody listens" in reason


# The rival acts at the question whether somebody listens, once.
RIVAL = """
mine = []
def hook(event, details):
    if event == "socket.connect" and not mine:
        mine.append(socket.socket(socket.AF_UNIX))
        os.unlink(path)
        {act}
sys.addaudithook(hook)
before = descriptors()
outcome = attempt()
if isinstance(outcome, list):
    print(json.dumps([*outcome, os.lstat(path).st_mode, len(descriptors()) - len(before)]))
else:
    print(json.dumps("bound" if outcome[1].inode == os.lstat(path).st_ino else "lost"))
"""


@pytest.mark.parametrize(
    ("act", "type_of_file"),
    [("mine[0].bind(path)", stat.S_ISSOCK), ("os.mkdir(path)", stat.S_ISDIR)],
    ids=["socket", "directory"],
)
def test_a_file_that_has_replaced_the_stale_one_in_the_meantime_is_left_alone(
    path: str, act: str, type_of_file: type
) -> None:
    """The rival's socket does not listen yet, and on most file systems has the inode of the stale one."""
    leave_stale(path)
    code, reason, mode, opened = run(RIVAL.format(act=act), path)
    assert code == errno.EADDRINUSE
    assert reason
    assert type_of_file(mode)
    if os.path.isdir("/proc/self/fd"):
        assert opened == 1  # the rival's


def test_a_stale_file_that_somebody_removes_in_the_meantime_is_no_error(path: str) -> None:
    leave_stale(path)
    assert run(RIVAL.format(act="pass"), path) == "bound"


def test_whoever_is_quicker_after_the_removal_has_the_name(path: str) -> None:
    script = """
rival = socket.socket(socket.AF_UNIX)
def hook(event, details):
    if event == "socket.bind" and details[0] is not rival and not os.path.lexists(path):
        rival.bind(path)
sys.addaudithook(hook)
print(json.dumps(attempt()))
"""
    leave_stale(path)
    code, _ = run(script, path)
    assert code == errno.EADDRINUSE
    assert os.path.exists(path)


# -- names


def longest(folder: str) -> str:
    return folder + "/" + "x" * ((107 if sys.platform == "linux" else 103) - len(folder) - 1)


def test_the_longest_path_works_and_one_byte_more_is_told_with_the_limit(folder: str) -> None:
    path = longest(folder)
    bind(path)[0].close()
    assert os.path.exists(path)
    error = refusal(path + "x")
    assert error.errno == errno.ENAMETOOLONG
    assert str(len(path)) in error.reason


def test_the_length_is_counted_in_bytes(folder: str) -> None:
    path = longest(folder)[:-1]
    assert refusal(path + "\N{EURO SIGN}").errno == errno.ENAMETOOLONG


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", errno.EINVAL),
        ("\0abstract", errno.EINVAL),
        ("a\0b", errno.EINVAL),
        ("a\ud800b", errno.EILSEQ),
        ("/no-such-directory/s", errno.ENOENT),
        (".", errno.EEXIST),
        ("/", errno.EEXIST),
    ],
)
def test_names_that_are_none(name: str, code: int) -> None:
    assert refusal(name).errno == code


def test_a_missing_directory_is_told_as_such(folder: str) -> None:
    assert refusal(f"{folder}/missing/s").reason == "its directory does not exist"


def test_a_relative_path_is_remembered_as_an_absolute_one(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    sock, file = bind("s")
    with sock:
        assert file.path == f"{folder}/s"
        monkeypatch.chdir("/")
        file.remove()
    assert os.listdir(folder) == []


def test_a_file_whose_name_begins_with_an_at_sign(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    bind("./@s")[0].close()
    assert os.listdir(folder) == ["@s"]


@linux_only
def test_an_abstract_name(folder: str) -> None:
    name = f"@{folder}"
    sock, file = bind_unix(name, permissions=0o600, owner=None)
    with sock, socket.socket(socket.AF_UNIX) as client:
        assert file is None
        sock.listen()
        client.connect(b"\0" + folder.encode())
        error = refusal(name)
        assert error.errno == errno.EADDRINUSE
    bind_unix(name, permissions=0o600, owner=None)[0].close()  # it is gone with its socket
    assert refusal("@" + "x" * 108).errno == errno.ENAMETOOLONG
    bind_unix("@" + "x" * (107 - len(folder)) + folder, permissions=0o600, owner=None)[0].close()
    assert refusal("@").errno == errno.EINVAL


def test_abstract_names_are_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="Linux only") as caught:
        unix_address("@name")
    assert caught.value.errno == errno.EAFNOSUPPORT


def test_a_system_without_unix_sockets(path: str) -> None:
    script = """
print(json.dumps(attempt()))
"""
    without = "import asyncio, socket\ndel socket.AF_UNIX\n"
    command = [sys.executable, "-c", without + PRELUDE + script, path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    code, reason = json.loads(result.stdout)
    assert code == errno.EAFNOSUPPORT
    assert "no unix sockets" in reason


def attempt(path: str) -> tuple[socket.socket, SocketFile] | OSError:
    try:
        return bind(path)
    except OSError as error:
        return error


@settings(max_examples=150)
@given(st.text(max_size=120))
@example("..")
@example("a/b")
@example("a\0b")
def test_any_name_is_bound_or_refused_with_a_reason(name: str) -> None:
    with short_folder() as folder:
        path = f"{folder}/{name}"
        bound = attempt(path)
        if isinstance(bound, OSError):
            assert bound.errno
            assert bound.strerror
            assert folder not in bound.strerror
        else:
            sock, file = bound
            with sock:
                assert os.listdir(folder) == [os.path.basename(path)]
                file.remove()
        assert os.listdir(folder) == []


# -- removal


def test_our_file_is_removed_and_once_more_is_no_error(path: str) -> None:
    sock, file = bind(path)
    with sock:
        file.remove()
        assert not os.path.lexists(path)
        file.remove()


def test_a_file_that_was_given_away_and_changed_is_still_ours(path: str) -> None:
    sock, file = bind(path)
    with sock:
        os.chmod(path, 0o666)
        file.remove()
        assert not os.path.lexists(path)


@pytest.mark.parametrize("by", ["socket", "file", "directory", "link to ours"])
def test_what_has_taken_the_place_of_our_file_is_left_alone(path: str, by: str) -> None:
    sock, file = bind(path)
    with sock:
        os.rename(path, f"{path}.moved")
        if by == "socket":
            leave_stale(path)
        elif by == "file":
            Path(path).write_text("precious")
        elif by == "directory":
            os.mkdir(path)
        else:
            os.symlink(f"{path}.moved", path)
        before = os.lstat(path)
        file.remove()
        assert os.lstat(path).st_ino == before.st_ino
        assert os.path.lexists(f"{path}.moved")


def test_the_inode_of_our_file_is_not_given_to_another_while_the_socket_is_open(path: str) -> None:
    sock, file = bind(path)
    with sock:
        for _ in range(20):
            os.unlink(path)
            leave_stale(path)
            file.remove()
            assert os.path.lexists(path)


def test_a_directory_that_is_gone_is_no_error(folder: str) -> None:
    os.mkdir(f"{folder}/d")
    sock, file = bind(f"{folder}/d/s")
    with sock:
        shutil.rmtree(f"{folder}/d")
        file.remove()
        Path(f"{folder}/d").write_text("a file now")
        file.remove()


def test_a_file_that_may_not_be_removed_is_an_error(path: str) -> None:
    script = """
folder = os.path.dirname(path)
be_nobody()
os.mkdir(path)
path += "/s"
sock, file = attempt()
os.chmod(os.path.dirname(path), 0o500)
try:
    file.remove()
except OSError as error:
    print(error.errno)
os.chmod(os.path.dirname(path), 0o700)
"""
    assert run(script, path) == errno.EACCES


# -- owners


ME = pwd.getpwuid(os.getuid()).pw_name
MINE = grp.getgrgid(os.getgid()).gr_name


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (ME, (os.getuid(), -1)),
        (f"{ME}:{MINE}", (os.getuid(), os.getgid())),
        (f":{MINE}", (-1, os.getgid())),
        ("1000:1001", (1000, 1001)),
        ("0", (0, -1)),
        (":4294967294", (-1, 4294967294)),
        (f"1000:{MINE}", (1000, os.getgid())),
        (f"{ME}:7", (os.getuid(), 7)),
    ],
)
def test_owners(text: str, owner: tuple[int, int]) -> None:
    assert parse_owner(text) == owner


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no owner"),
        (":", "no owner"),
        (f"{ME}:", "no group"),
        ("no-such-user", "no user 'no-such-user'"),
        (f"{ME}:no-such-group", "no group 'no-such-group'"),
        ("1:2:3", "no group '2:3'"),
        ("-1", "no user '-1'"),
        ("4294967295", "at most 4294967294"),
        ("1:" + "9" * 5000, "at most"),
        ("\N{ARABIC-INDIC DIGIT THREE}", "no user"),
        ("a\0b", "no user"),
        ("\ud800", "no user"),
    ],
)
def test_owners_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_owner(text)


@given(st.text(st.characters(exclude_categories=["L"]), max_size=20))
def test_any_text_is_an_owner_or_refused(text: str) -> None:
    try:
        user, group = parse_owner(text)
    except ValueError:
        return
    assert -1 <= user < 2**32 - 1
    assert -1 <= group < 2**32 - 1
    assert (user, group) != (-1, -1)
