"""Bytes to messages and back (RFC 9110, RFC 9112), sans-I/O: no sockets, no clock, no settings object."""

from waitress_async.http.connection import NO_FRAME, Connection, Receiving, Sending
from waitress_async.http.events import (
    CLOSED,
    END_OF_MESSAGE,
    NEED_DATA,
    PAUSED,
    Data,
    Event,
    RepeatedFields,
    Request,
)
from waitress_async.http.limits import Limits
from waitress_async.http.memo import HeadMemo
from waitress_async.http.proxy_protocol import ProxiedAddresses, ProxyHeaderReader
from waitress_async.http.response import Answer, DefaultFields, HeadEncoder, ResponseHead, error_response

__all__ = [
    "CLOSED",
    "END_OF_MESSAGE",
    "NEED_DATA",
    "NO_FRAME",
    "PAUSED",
    "Answer",
    "Connection",
    "Data",
    "DefaultFields",
    "Event",
    "HeadEncoder",
    "HeadMemo",
    "Limits",
    "ProxiedAddresses",
    "ProxyHeaderReader",
    "Receiving",
    "RepeatedFields",
    "Request",
    "ResponseHead",
    "Sending",
    "error_response",
]
