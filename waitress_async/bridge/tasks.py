"""The tasks in which code of the app's runs on the loop: the stop waits for them. Loop's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
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
        task = asyncio.get_running_loop().create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard, context=self._context)
        if on_end is not None:
            task.add_done_callback(on_end, context=self._context)
        return task

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have `call()` made by the loop, in none of the apps' contexts."""
        asyncio.get_running_loop().call_soon(call, context=self._context)

    async def wait_closed(self, timeout: float | None = None) -> list[str]:
        """Wait for all tasks to end, at most `timeout` seconds. Returns the names of those that have not."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        return [task.get_name() for task in self._tasks]
