"""The WSGI apps that every server is measured with."""

import os
import random
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

HELLO = b"Hello, world!"
HELLO_HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))]

BLOCK = 65536
# A prime: a body that is wrong by any number of blocks or pages does not look right.
PERIOD = 1_000_003
_PATTERN = random.Random(3333).randbytes(PERIOD)
_TWICE = _PATTERN * 2

# The environment variable that names the file which `bodies` serves; `write_file` makes it.
FILE = "BENCHMARK_FILE"


def hello(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    start_response("200 OK", HELLO_HEADERS[:])  # a list of its own: a server may change it
    return [HELLO]


def part(seed: int, start: int, length: int) -> bytes:
    """Up to PERIOD bytes, from `start` on, of the body of that seed."""
    position = (seed + start) % PERIOD
    return _TWICE[position : position + length]


def content(seed: int, length: int, block: int = BLOCK) -> Iterator[bytes]:
    """The body of that seed and length, in blocks; client and app both know what it has to be."""
    for start in range(0, length, block):
        yield part(seed, start, min(block, length - start))


def summed(blocks: Iterable[bytes]) -> bytes:
    """Length and checksum of a body: what the sinks answer, and what a client compares with."""
    length = checksum = 0
    for block in blocks:
        length += len(block)
        checksum = zlib.crc32(block, checksum)
    return b"%d %08x" % (length, checksum)


def write_file(path: str | os.PathLike[str], length: int) -> None:
    """A file with `content(0, length)`; from its n-th byte on it is the content of seed n."""
    with open(path, "wb") as file:
        file.writelines(content(0, length))


def bodies(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Bodies of any size, one path for each way in which an app takes or gives them.

    /upload reads the request's and answers its sum; /ignore answers without reading; /echo sends it back.
    /file/LENGTH/SEED, /generated/LENGTH/SEED, /list/LENGTH/SEED answer that content;
    /unsized/LENGTH/SEED too, without saying how long it is. Everything else is hello.
    """
    match environ.get("PATH_INFO", "").split("/")[1:]:
        case ["upload"]:
            return _answer(start_response, summed(_request_body(environ)))
        case ["ignore"]:
            return _answer(start_response, b"ignored")
        case ["echo"]:
            start_response("200 OK", _headers(int(environ["CONTENT_LENGTH"])))
            return _request_body(environ)
        case ["file", length, seed]:
            return _file(environ, start_response, int(length), int(seed))
        case ["generated", length, seed]:
            start_response("200 OK", _headers(int(length)))
            return content(int(seed), int(length))
        case ["unsized", length, seed]:
            start_response("200 OK", _headers(None))
            return content(int(seed), int(length))
        case ["list", length, seed]:
            start_response("200 OK", _headers(int(length)))
            return list(content(int(seed), int(length)))
        case _:
            return hello(environ, start_response)


def _headers(length: int | None) -> list[tuple[str, str]]:
    sized = [] if length is None else [("Content-Length", str(length))]
    return [("Content-Type", "application/octet-stream"), *sized]


def _answer(start_response: "StartResponse", body: bytes) -> Iterable[bytes]:
    start_response("200 OK", _headers(len(body)))
    return [body]


def _request_body(environ: "WSGIEnvironment") -> Iterator[bytes]:
    # No more than is there: not every server ends wsgi.input with the body.
    left = int(environ.get("CONTENT_LENGTH") or 0)
    read = environ["wsgi.input"].read
    while left and (block := read(min(BLOCK, left))):
        left -= len(block)
        yield block


def _file(
    environ: "WSGIEnvironment", start_response: "StartResponse", length: int, seed: int
) -> Iterable[bytes]:
    file = open(os.environ[FILE], "rb")  # noqa: SIM115 - the server closes it
    file.seek(seed)
    start_response("200 OK", _headers(length))
    if wrapper := environ.get("wsgi.file_wrapper"):
        return cast("Iterable[bytes]", wrapper(file, BLOCK))
    return _read_file(file, length)  # granian, cheroot and the bridges to ASGI have no wrapper


def _read_file(file: BinaryIO, length: int) -> Iterator[bytes]:
    with file:
        for block in iter(partial(file.read, BLOCK), b""):
            yield block[:length]
            length -= len(block[:length])
            if not length:
                return
