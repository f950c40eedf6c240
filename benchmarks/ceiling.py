"""The ceiling: the same bytes from a bare protocol on uvloop, with no parsing, no thread and no app.

It takes each read for one request, which holds for a client that does not pipeline and sends short heads.
"""

import asyncio
import sys

import uvloop
from apps import HELLO

RESPONSE = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: %d\r\n"
    b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    b"Server: ceiling\r\n"
    b"\r\n%s" % (len(HELLO), HELLO)
)


class FixedAnswer(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(RESPONSE)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(FixedAnswer, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
