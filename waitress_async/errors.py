"""One exception tree. What answers a request carries its HTTP status, whoever's fault it was."""

from __future__ import annotations

import errno


class WaitressAsyncError(Exception):
    """Base of everything this package raises on its own account."""


class SettingsError(WaitressAsyncError, ValueError):
    """A setting is unknown, malformed, or contradicts another one. The message names it."""


class AppImportError(WaitressAsyncError, ImportError):
    """The WSGI application, or another object that settings name, could not be found or imported."""


class NotWSGIError(WaitressAsyncError, TypeError, ValueError):
    """What was given as the application is none, or is one of another kind. The message says what it is."""


class ServerClosed(WaitressAsyncError, RuntimeError):
    """The server was asked for something that only a running one can do."""


class LifespanError(WaitressAsyncError, RuntimeError):
    """A server's lifespan failed. `__cause__` is what it raised.

    `is_logged` says whether the log has that with its traceback: not if the server did not even start.
    """

    def __init__(self, detail: str, *, is_logged: bool = False) -> None:
        super().__init__(detail)
        self.is_logged = is_logged


class LocalProtocolError(WaitressAsyncError, RuntimeError):
    """This side tried to send what HTTP does not allow now: a defect in the server, not in the peer."""


class ClientDisconnected(WaitressAsyncError, OSError):
    """The client went away while the app was still reading from it or writing to it."""


class SpoolFull(WaitressAsyncError, OSError):
    """Temporary files have taken all that they may. `setting` names the bound, for whoever can raise it."""

    def __init__(self, detail: str, *, setting: str) -> None:
        super().__init__(errno.ENOSPC, detail)
        self.setting = setting


class ResponseNotStored(WaitressAsyncError, OSError):
    """A response could not be kept for a slow client, because the disk failed. It is cut."""


class ProxyProtocolError(WaitressAsyncError):
    """A connection does not begin with the PROXY header that was asked for. The message holds none of it."""


class HTTPError(WaitressAsyncError):
    """A request that is answered by the server itself, without the app.

    `detail` is one sentence for the client. It must hold no bytes of the request as they came:
    name the rule that was broken, quote input with `ascii()` only. `setting` names the limit that
    was exceeded, so that whoever runs the server knows which one to raise.
    """

    status: int = 500
    reason: str = "Internal Server Error"

    def __init__(self, detail: str, *, setting: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.setting = setting


class RequestError(HTTPError):
    """The peer broke a rule. The connection is closed after the answer: its framing is not to be trusted."""


class BadRequest(RequestError):
    status = 400
    reason = "Bad Request"


class MalformedProxyHeader(BadRequest):
    """What a trusted proxy says cannot be understood. `header`, `fault` and `value` are for the log."""

    def __init__(self, header: str, fault: str, value: str) -> None:
        super().__init__(f'Header "{header}" malformed.')
        self.header = header
        self.fault = fault
        self.value = value


class RequestTimeout(RequestError):
    status = 408
    reason = "Request Timeout"


class ContentTooLarge(RequestError):
    status = 413
    reason = "Content Too Large"


class URITooLong(RequestError):
    status = 414
    reason = "URI Too Long"


class ExpectationFailed(RequestError):
    status = 417
    reason = "Expectation Failed"


class HeaderFieldsTooLarge(RequestError):
    status = 431
    reason = "Request Header Fields Too Large"


class MethodNotImplemented(RequestError):
    status = 501
    reason = "Not Implemented"


class VersionNotSupported(RequestError):
    status = 505
    reason = "HTTP Version Not Supported"


class PermanentRedirect(HTTPError):
    """What is asked for is at `location`, a URL."""

    status = 308
    reason = "Permanent Redirect"

    def __init__(self, location: str) -> None:
        super().__init__("This site is served by https only.")
        self.location = location


class ServerError(HTTPError):
    """This side cannot answer as asked; the request itself was sound."""


class InternalServerError(ServerError):
    pass


class InsufficientStorage(ServerError):
    status = 507
    reason = "Insufficient Storage"


class ServiceUnavailable(ServerError):
    status = 503
    reason = "Service Unavailable"

    def __init__(self, detail: str, *, setting: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(detail, setting=setting)
        self.retry_after = retry_after
