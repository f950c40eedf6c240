"""What the HTTP parser costs when its input comes one byte at a time: `python benchmarks/cuts.py`.

A head, a chunk extension and a trailer of some size and of twice that are fed whole and byte by byte;
linear parsing shows as a ratio near 2. No sockets: the connection alone, on this interpreter.
"""

from __future__ import annotations

import argparse
import statistics
import time

from waitress_async.http import NEED_DATA, PAUSED, Connection, HeadMemo, Limits

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

# name: what comes before the long part, and after it
PARTS = {
    "head": (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"\r\n\r\n"),
    "chunk extension": (CHUNKED + b"3;a=", b"\r\nabc\r\n0\r\n\r\n"),
    "trailer": (CHUNKED + b"0\r\nX: ", b"\r\n\r\n"),
}


def seconds(stream: bytes, step: int) -> float:
    """Time to feed `stream` in pieces of `step` bytes and to have its one request understood."""
    bound = len(stream) + 1
    limits = Limits(header_size=bound, chunk_line_size=bound, chunk_extensions_size=bound, trailer_size=bound)
    connection = Connection(limits, HeadMemo())
    start = time.perf_counter()
    for position in range(0, len(stream), step):
        connection.receive_data(stream[position : position + step])
        while (event := connection.next_event()) not in (NEED_DATA, PAUSED):
            pass
    assert event is PAUSED, "the request was not understood"
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=1_000_000, help="bytes of the long part (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="of which the median counts (default: %(default)s)"
    )
    arguments = parser.parse_args()
    size = arguments.size
    print(f"{'part':16}  {'whole':>9}  {f'{size:,} bytes':>16}  {f'{2 * size:,} bytes':>16}  ratio")
    for name, (before, after) in PARTS.items():
        once, twice = before + b"a" * size + after, before + b"a" * 2 * size + after
        rounds = range(arguments.rounds)
        whole = statistics.median(seconds(once, len(once)) for _ in rounds)
        pairs = [(seconds(once, 1), seconds(twice, 1)) for _ in rounds]
        one, two = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(two / one for one, two in pairs)
        print(f"{name:16}  {whole:7.4f} s  {one:14.2f} s  {two:14.2f} s  {ratio:5.2f}")


if __name__ == "__main__":
    main()
