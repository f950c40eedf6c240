"""One request with its response. Made on the loop; `run` is called by a pool thread."""

from __future__ import annotations

import logging
from io import BytesIO
from typing import BinaryIO

from waitress_async.bridge import Output
from waitress_async.buffers import BufferReader
from waitress_async.errors import HTTPError, InsufficientStorage
from waitress_async.http import Request, error_response
from waitress_async.server.runtime import Application
from waitress_async.wsgi import Environ, request_environ, run_application

logger = logging.getLogger("waitress_async")


class Exchange:
    """A request, its body, and where the response goes.

    The loop owns it until it is queued; then `request` and `body` belong to the thread that runs it,
    and the loop keeps to `output`.
    """

    __slots__ = ("_application", "_base_environ", "body", "output", "request")

    def __init__(
        self,
        application: Application,
        base_environ: Environ,
        request: Request,
        body: BufferReader | None,
        output: Output,
    ) -> None:
        self._application = application
        self._base_environ = base_environ
        self.request = request
        self.body = body
        self.output = output

    def run(self) -> None:
        """Call the app. In a pool thread; the body is complete."""
        body = self.body
        output = self.output
        try:
            if output.is_closed():
                return
            file: BinaryIO
            if body is None:
                file, length = BytesIO(), 0
            else:
                length = len(body)
                try:
                    file = body.getfile()  # may write the last of it
                except OSError:
                    logger.exception("A request body could not be stored")
                    self._answer(InsufficientStorage("There is no room for the request body."))
                    return
            environ = request_environ(self._base_environ, self.request, file, length, output.is_closed)
            application = self._application
            application.context.copy().run(
                run_application,
                application.app,
                environ,
                output,
                application.encoder,
                expose_tracebacks=application.expose_tracebacks,
            )
        except BaseException:
            output.abort()
            raise
        finally:
            if body is not None:
                body.close()

    def _answer(self, error: HTTPError) -> None:
        head, body = error_response(error, self._application.encoder)
        self.output.begin(head, None)
        self.output.finish(body)
