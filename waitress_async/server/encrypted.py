"""A connection under TLS: what asyncio's transport for it does differently. Loop's thread."""

from __future__ import annotations

import asyncio

from waitress_async.server.ends import Ends
from waitress_async.server.peer_state import has_ended, is_broken, is_full
from waitress_async.server.protocol import HTTPProtocol
from waitress_async.server.runtime import Runtime
from waitress_async.server.sender import Sender
from waitress_async.server.tls import environ_of


class EncryptedSender(Sender):
    """Sends under TLS. What asyncio's takes when the client has ended the connection, or is gone, it throws
    away, and tells nobody but the log; so nothing is written then."""

    __slots__ = ()

    def pump(self) -> None:
        if not has_ended(self._transport):
            super().pump()
        elif is_broken(self._transport) or not self._transport.is_reading():
            self._transport.abort()
        # else asyncio is about to read that it is the end, or has, and sends what it holds.

    def _is_lost(self) -> bool:
        return super()._is_lost() or is_broken(self._transport)

    def _write(self, segments: list[bytes | memoryview]) -> None:
        if data := b"".join(segments):  # however large: TLS copies it anyway
            self.progress += len(data)
            self._transport.write(data)


class EncryptedProtocol(HTTPProtocol):
    """HTTP over TLS. No half of it can be closed, it must not be closed twice, it waits for the client's word
    when it is, and it neither tells how much is unsent nor that what is written goes nowhere."""

    __slots__ = ("_room_seen", "_room_since", "_told_sent")

    _sender_class = EncryptedSender

    def __init__(self, runtime: Runtime, ends: Ends) -> None:
        super().__init__(runtime, ends)
        self._told_sent = 0  # of the sender's progress, what the system has for sure
        self._room_seen: tuple[int, float] | None = None  # the progress then, and when, by the sweep's clock
        self._room_since: float | None = None  # the system has taken more at each sweep, by the same clock

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._environs.connection.update(environ_of(transport.get_extra_info("ssl_object")))

    def eof_received(self) -> bool:
        """The client has ended TLS: what is written is sent, and nothing more."""
        self._connection.receive_eof()
        self._sender.drop_source()
        self._end_hearing()
        self._linger_for(self._runtime.settings.linger_timeout)
        return False

    def _end_sending(self, *, at_once: bool) -> bool:
        if at_once:
            self._close()
            return False
        return True

    def _close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()
            full = self._runtime.connections.full
            self._linger_for(0 if full else self._runtime.settings.linger_timeout)  # for the client's word

    def close(self) -> None:
        """As for every protocol; the client's word need not be waited for."""
        super().close()
        if not self._unsent():
            self._transport.abort()

    def _end_linger(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()  # which says to the client that this is the end
        self._transport.abort()

    def _is_gone(self) -> bool:
        return has_ended(self._transport)

    def _unsent(self) -> int:
        """One, if asyncio holds some below TLS. It does not tell; but there are none if the system takes more
        at two sweeps in a row."""
        size = super()._unsent()
        progress = self._sender.progress
        if size or (self._told_sent == progress and self._linger_until is None):
            return size
        now = self._runtime.connections.clock
        if is_full(self._transport):
            self._room_seen = self._room_since = None
            return 1
        if self._room_since is None:
            self._room_since = now
        if self._room_seen is None or self._room_seen[0] != progress:
            self._room_seen = progress, now
        if self._room_seen[1] == now:
            return 1
        self._told_sent = progress
        return 0

    def _is_behind(self, unsent: int) -> bool:
        """Of a stream there is something new at each sweep, which is not known to be sent. But what there was
        at the last one is, if the system took more then, and does now."""
        if super()._unsent() or self._sender.waits_for_room:
            return True
        has_room = self._room_since is not None and self._room_since < self._runtime.connections.clock
        return bool(unsent) and not has_room
