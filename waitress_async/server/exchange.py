"""One request with its response. Made on the loop, called by a pool thread."""

from __future__ import annotations

import logging
from io import BytesIO

from waitress_async.bridge import Input, Output
from waitress_async.buffers import BufferReader, SpooledBody
from waitress_async.errors import HTTPError, InsufficientStorage
from waitress_async.http import Request, error_response
from waitress_async.server.runtime import Application
from waitress_async.wsgi import (
    Environ,
    Environs,
    add_complete_body,
    add_streamed_body,
    run_application,
)

logger = logging.getLogger("waitress_async")


class Exchange:
    """A request, its body, and where the response goes.

    The loop owns it until it is queued; then `request` and a `body` that is complete belong to the thread
    that runs it, and the loop keeps to `output`, and to an `Input`. A small body that came with its head is a
    BytesIO.
    """

    __slots__ = ("_application", "_environs", "body", "is_bulky", "output", "queued_at", "request")

    def __init__(
        self,
        application: Application,
        environs: Environs,
        request: Request,
        body: BufferReader | Input | BytesIO | None,
        output: Output,
    ) -> None:
        self._application = application
        self._environs = environs
        self.request = request
        self.body = body
        self.output = output
        self.queued_at: float | None = None  # by the sweep's clock
        self.is_bulky = False  # by what is known of its path

    @property
    def is_streamed(self) -> bool:
        """Whether the app reads the body while it comes."""
        return isinstance(self.body, Input)

    def __call__(self) -> None:
        """Call the app. In a pool thread; the body is complete, or streamed."""
        body = self.body
        output = self.output
        if not output.start():
            return  # the loop has answered, and the body is the loop's
        try:
            if output.is_closed():  # nobody waits for it any more
                return
            environ = self._make_environ()
            if environ is None:
                return
            application = self._application
            application.context.copy().run(
                run_application,
                application.app,
                environ,
                output,
                application.encoder,
                application.expose_tracebacks,
            )
            if output.overflowed is not self.is_bulky:
                application.tell_bulky(self.request.path, output.overflowed)
        except BaseException:
            output.abort()
            raise
        finally:
            if body is not None and not self._is_left_to_async_body():
                body.close()

    def _is_left_to_async_body(self) -> bool:
        """Whether the request's body may still be read, by what goes on with the response."""
        body = self.body
        return self.output.goes_on and isinstance(body, Input) and not body.is_read_by_thread

    def _make_environ(self) -> Environ | None:
        """The environ; None if there cannot be one, which has been answered."""
        body = self.body
        make, request, output = self._environs.make, self.request, self.output
        if body is None:
            return make(request, BytesIO(), output.is_closed, output.on_disconnect)
        if isinstance(body, BytesIO):
            environ = make(request, body, output.is_closed, output.on_disconnect)
            add_complete_body(environ, SpooledBody(body, None, request.content_length or 0))
            return environ
        try:
            file = body.getfile()  # may write the last of it
        except OSError as error:
            logger.error("A request body could not be stored: %s", error)
            self._answer(no_room(error))
            return None
        environ = make(request, file, output.is_closed, output.on_disconnect)
        if isinstance(body, Input):
            output.request_body = body
            add_streamed_body(environ, body.getreader())
        else:
            add_complete_body(environ, SpooledBody(file, body.file, len(body)))
        return environ

    def _answer(self, error: HTTPError) -> None:
        head, body = error_response(error, self._application.encoder)
        self.output.begin(head, None)
        self.output.finish((body,))


def no_room(error: OSError) -> InsufficientStorage:
    """The answer to a request whose body the disk did not take."""
    return InsufficientStorage(
        "There is no room for the request body.", setting=getattr(error, "setting", None)
    )
