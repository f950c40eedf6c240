"""Coroutines of the program's that are asked about each request, at its head. Loop's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any, Final

from waitress_async.bridge import LogThread, Tasks
from waitress_async.errors import InternalServerError
from waitress_async.http import Answer, HeadEncoder, Request, error_response
from waitress_async.server.gate_request import GateRequest
from waitress_async.server.refusal import Refusal
from waitress_async.wsgi import Environ, logged_path

Gate = Callable[[GateRequest], Awaitable[Refusal | None]]

# What is said of a request: it may go on to the app, or is answered.
Verdict = Request | Answer

# What no gate may add. The server's own keys are not a gate's to change, nor is what the request itself says:
# the server acts on it.
_PROTECTED_PREFIXES: Final = ("wsgi.", "waitress.", "waitress_async.")
_PROTECTED: Final = frozenset(
    {
        "CONTENT_LENGTH",
        "PATH_INFO",
        "QUERY_STRING",
        "REQUEST_METHOD",
        "REQUEST_URI",
        "SCRIPT_NAME",
        "SERVER_PROTOCOL",
    }
)


class Gates:
    """Those of one server."""

    def __init__(
        self,
        gates: Sequence[Gate],
        *,
        state: Any,
        context: Context,
        tasks: Tasks,
        log: LogThread,
        encoder: HeadEncoder,
    ) -> None:
        """`state` is what the lifespan has yielded. For each request they run in a copy of `context`."""
        self._gates = gates
        self._state = state
        self._context = context
        self._tasks = tasks
        self._log = log
        self._names = ", ".join(map(_name_of, gates))
        self._failure = error_response(InternalServerError("The server failed."), encoder)

    def ask(
        self,
        request: Request,
        received: dict[str, str],
        base: Environ,
        since: float,
        on_verdict: Callable[[Verdict], object],
    ) -> Hearing:
        """Begin to ask them about `request`, one after the other; the first refusal is the last word.

        `received` are its fields as they came, `base` the environ of its connection, `since` the time by the
        sweep's clock. `on_verdict` is called later, once, unless the hearing is cancelled.
        """
        return Hearing(self, request, GateRequest(request, received, base, self._state), since, on_verdict)

    def start(self, hearing: Hearing, request: Request, asked: GateRequest) -> asyncio.Task[Verdict]:
        """The task of a hearing. Each of a request has the same context: what one gate sets, the next has."""
        name = f"{self._names} for {logged_path(request.path)}"
        work = self._judge(hearing, request, asked)
        return self._tasks.start(work, self._context.copy(), name, hearing.ended)

    async def _judge(self, hearing: Hearing, request: Request, asked: GateRequest) -> Verdict:
        """The verdict, whatever the gates raise; but a cancellation goes through, and what closes a coroutine
        that is left to itself."""
        for gate in self._gates:
            if not hearing.is_awaited:  # the one before did not care for its cancellation
                raise asyncio.CancelledError
            try:
                refusal: object = await gate(asked)
                if isinstance(refusal, Refusal):
                    return refusal.as_answer()
                if refusal is not None:
                    raise TypeError(f"a gate returns None or a Refusal, and not {refusal!r:.200}")
                if asked.environ:
                    _check_entries(asked.environ)
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as error:  # an exit too: it is one request's, and not the program's
                message = "Exception in the gate %s for %s"
                self._log.log_exception(error, message, _name_of(gate), logged_path(request.path))
                return self._failure
        if asked.environ:
            return replace(request, fields={**request.fields, **asked.environ})
        return request

    def verdict_of(self, task: asyncio.Task[Verdict]) -> Verdict:
        """The verdict of a task that has ended. It may have none: if it was cancelled, not by us, but by a
        gate or the end of the loop; or if a gate has raised GeneratorExit itself."""
        if task.cancelled():
            self._log.log(logging.ERROR, "Cancelled, and not by the server: %s", task.get_name())
        elif (error := task.exception()) is not None:
            self._log.log_exception(error, "Exception in the gate %s", task.get_name())
        else:
            return task.result()
        return self._failure


class Hearing:
    """The gates under way for one request."""

    __slots__ = ("_gates", "_on_verdict", "_task", "since")

    def __init__(
        self,
        gates: Gates,
        request: Request,
        asked: GateRequest,
        since: float,
        on_verdict: Callable[[Verdict], object],
    ) -> None:
        self._gates = gates
        self._on_verdict: Callable[[Verdict], object] | None = on_verdict
        self.since = since
        """When it began, by the sweep's clock."""
        self._task = gates.start(self, request, asked)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the verdict."""
        return self._on_verdict is not None

    def cancel(self) -> None:
        """Nobody waits for the verdict any more."""
        self._on_verdict = None
        self._task.cancel()

    def ended(self, task: asyncio.Task[Verdict]) -> None:
        """Its task has."""
        on_verdict, self._on_verdict = self._on_verdict, None
        if on_verdict is None and task.cancelled():
            return
        verdict = self._gates.verdict_of(task)
        if on_verdict is not None:
            on_verdict(verdict)


def _check_entries(entries: Mapping[Any, object]) -> None:
    """Raise TypeError or ValueError for what may not be added to an environ."""
    for key, value in entries.items():
        if not isinstance(key, str):
            raise TypeError(f"the keys of environ are str, and not {key!r:.200}")
        if key.startswith(_PROTECTED_PREFIXES) or key in _PROTECTED:
            raise ValueError(f"{key!r} is the server's, and not for a gate to set")
        if "." not in key and not isinstance(value, str):
            raise TypeError(
                f"environ[{key!r:.200}] must be a str, not {type(value).__name__}: other objects have a name "
                "with a dot, such as 'shop.user' (PEP 3333)"
            )


def _name_of(gate: object) -> str:
    named = gate if hasattr(gate, "__qualname__") else getattr(gate, "func", type(gate))
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', '?')}"
