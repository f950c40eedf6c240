"""Unix sockets: files with their permissions, stale ones replaced, ours removed at the end. Any thread."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from dataclasses import dataclass
from typing import Final

# Bytes of a path or of an abstract name: sun_path has 108 (unix(7)), 104 in the BSDs, and one is a null.
_LONGEST: Final = 107 if sys.platform == "linux" else 103

# Nobody but the owner, whatever is asked for later.
_PRIVATE: Final = 0o600

# The ids that there are; the one behind them is -1, which is none (chown(2)).
_HIGHEST_ID: Final = 2**32 - 2


@dataclass(frozen=True, slots=True)
class SocketFile:
    """A socket file that this process has made. The path is absolute; the inode says which file it was."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        """Unlink the path if it is still this file; what has taken its place is left alone.

        To be called before the socket is closed: until then the system gives its inode to no other file.
        Raises OSError only if the file is there and may not be unlinked.
        """
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)
        except (FileNotFoundError, NotADirectoryError):
            pass


def bind_unix(
    path: str, *, permissions: int, owner: tuple[int, int] | None
) -> tuple[socket.socket, SocketFile | None]:
    """A bound stream socket that does not listen yet, and the file that was made for it.

    A `path` that begins with "@" is an abstract name (unix(7), Linux only); "./@" begins a file's. It has no
    file, hence None, and neither permissions nor an owner: whoever shares the network namespace may connect.

    The file ends up with the mode `permissions`, whatever the umask, and with `owner`, a pair of uid and gid
    where -1 keeps what the process has. Its directory must be one where nobody else may replace files, or a
    sticky one like /tmp. Nobody can connect before the socket listens.

    A socket file that is there already is replaced if nobody listens on it, and anything else is left alone.
    Of two servers that start at the same moment one fails with EADDRINUSE, but for two gaps. A socket that is
    bound and does not listen yet looks stale, so listen at once. And a file can be replaced in the instant
    between the last look at it and its removal. Where the system refuses connections when the backlog is full
    (the BSDs, macOS; Linux says EAGAIN), a server that is overrun looks stale as well.

    Raises OSError, whose `strerror` is a reason without the path. Nothing is left open or behind then.
    """
    address = unix_address(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.startswith("@"):
            sock.bind(address)
            return sock, None
        _bind_file(sock, address, permissions & _PRIVATE)
        file = _identify(path)
        try:
            _give_away(path, permissions, owner)
        except BaseException:
            file.remove()
            raise
        return sock, file
    except BaseException:
        sock.close()
        raise


def unix_address(path: str) -> bytes:
    """What `bind` and `connect` take for a path, or for an abstract name that begins with "@".

    Raises OSError, whose `strerror` is a reason without the path, for what the system has no address for.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "this system has no unix sockets")
    abstract = path.startswith("@")
    if abstract and sys.platform != "linux":
        raise OSError(errno.EAFNOSUPPORT, "abstract names exist on Linux only")
    try:
        name = os.fsencode(path[abstract:])
    except UnicodeError as error:
        raise OSError(errno.EILSEQ, "the file system cannot encode the path") from error
    if not name:
        raise OSError(errno.EINVAL, "the path is empty")
    if b"\0" in name:
        raise OSError(errno.EINVAL, "the path holds a null character")
    if len(name) > _LONGEST:
        raise OSError(errno.ENAMETOOLONG, f"the path has {len(name)} bytes, and {_LONGEST} is the limit")
    return b"\0" + name if abstract else name


def parse_owner(text: str) -> tuple[int, int]:
    """The uid and gid of `user`, `user:group` or `:group`, by names or by numbers; -1 for the one not given.

    Raises ValueError, with the reason.
    """
    user, colon, group = text.partition(":")
    if not (user or group):
        raise ValueError("no owner is given: it is written user, user:group or :group")
    if colon and not group:
        raise ValueError("no group is given behind the colon")
    return _user_id(user) if user else -1, _group_id(group) if group else -1


def _user_id(user: str) -> int:
    if (number := _number(user)) is not None:
        return number
    try:
        import pwd

        return pwd.getpwnam(user).pw_uid
    except (ImportError, KeyError, ValueError) as error:  # the last for what no name can hold
        raise ValueError(f"there is no user {user!a}") from error


def _group_id(group: str) -> int:
    if (number := _number(group)) is not None:
        return number
    try:
        import grp

        return grp.getgrnam(group).gr_gid
    except (ImportError, KeyError, ValueError) as error:
        raise ValueError(f"there is no group {group!a}") from error


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > len(str(_HIGHEST_ID)) or int(text) > _HIGHEST_ID:
        raise ValueError(f"an id is at most {_HIGHEST_ID}")
    return int(text)


def _bind_file(sock: socket.socket, address: bytes, mode: int) -> None:
    """Make the socket's file, in place of a stale one."""
    try:
        # Linux makes the file with the mode of the socket, less the umask, which is the whole process's.
        os.fchmod(sock.fileno(), mode)
    except OSError:
        pass  # EINVAL elsewhere: the umask alone decides for now, and nobody can connect
    try:
        sock.bind(address)
    except FileNotFoundError as error:
        raise OSError(error.errno, "its directory does not exist") from error
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _remove_stale(address)
        sock.bind(address)  # whoever was quicker has it


def _identify(path: str) -> SocketFile:
    found = os.lstat(path)
    absolute = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    return SocketFile(absolute, found.st_dev, found.st_ino)


def _give_away(path: str, permissions: int, owner: tuple[int, int] | None) -> None:
    # In this order, because chmod() follows symbolic links. A new owner may put one there, even in /tmp.
    os.chmod(path, permissions)
    if owner is not None:
        try:
            os.chown(path, *owner, follow_symlinks=False)
        except OSError as error:
            reason = f"it cannot be given to {owner[0]}:{owner[1]}: {error.strerror}"
            raise OSError(error.errno, reason) from error


def _remove_stale(path: bytes) -> None:
    """Unlink a socket file that nobody listens on, if it is still there. Raises OSError for other files."""
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.EEXIST, "it is a symbolic link, and is left alone")
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EEXIST, "it is a file that is not a socket, and is left alone")
        _check_stale(path)
        if _version(os.lstat(path)) != _version(found):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        try:
            os.unlink(path)
        except PermissionError as error:
            reason = f"it is a socket that nobody listens on, and cannot be removed: {error.strerror}"
            raise OSError(error.errno, reason) from error
    except FileNotFoundError:
        pass


def _check_stale(path: bytes) -> None:
    """Raises OSError unless a connection is refused, which says that nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is EAGAIN, which is an answer too
        code = probe.connect_ex(path)
    if code in (errno.ECONNREFUSED, errno.ENOENT):
        return
    reason = os.strerror(errno.EADDRINUSE)
    if code in (errno.EACCES, errno.EPERM):
        reason = f"it is a socket that may be in use, and cannot be asked: {os.strerror(code)}"
    raise OSError(errno.EADDRINUSE, reason)


def _version(found: os.stat_result) -> tuple[int, int, int]:
    # File systems give the inode of a removed file to the next one, so its number alone would not tell.
    return found.st_dev, found.st_ino, found.st_ctime_ns
