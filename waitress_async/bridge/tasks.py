"""The tasks in which code of the app's runs on the loop: the stop waits for them. Loop's thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Tasks:
    """Those of one server."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._context = Context()  # for what is ours, or the app's variables would go with it

    def start(
        self,
        work: Coroutine[object, object, T],
        context: Context,
        name: str,
        on_end: Callable[[asyncio.Task[T]], object] | None = None,
    ) -> asyncio.Task[T]:
        """Run `work` in a task that `wait_closed` waits for.

        `on_end(task)` is called when it has ended, in none of the apps' contexts.
        """
        loop = asyncio.get_running_loop()
        # Not by `create_task(context=...)`, which not all task factories of programs know.
        task: asyncio.Task[T] = context.run(partial(loop.create_task, work, name=name))
        self._tasks.add(task)
        if on_end is not None:
            task.add_done_callback(on_end, context=self._context)
        task.add_done_callback(self._tasks.discard, context=self._context)
        return task

    def cancel(self) -> None:
        """Cancel what is left."""
        for task in list(self._tasks):
            task.cancel()

    @property
    def names(self) -> list[str]:
        """Those of the tasks that are left."""
        return [task.get_name() for task in self._tasks]

    async def wait_closed(self, timeout: float | None = None) -> None:
        """Wait for all tasks to end, those that they start too, at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._tasks:
                    await asyncio.wait(self._tasks)
