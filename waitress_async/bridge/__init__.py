"""The only place where threads meet the loop: pool, input, output, wake-ups, the log's thread, calls
from threads to the loop."""

from waitress_async.bridge.async_body import AsyncBodies
from waitress_async.bridge.background import BackgroundThread
from waitress_async.bridge.callbacks import CallbackThread
from waitress_async.bridge.executor import PoolExecutor, in_thread
from waitress_async.bridge.input import Input
from waitress_async.bridge.logs import LogThread
from waitress_async.bridge.output import Output, OutputStore, Piece
from waitress_async.bridge.pool import Pool, QueueFull
from waitress_async.bridge.portal import Portal, current_portal
from waitress_async.bridge.request_body import RequestBody, empty_body
from waitress_async.bridge.tasks import Tasks
from waitress_async.bridge.wakeup import Wakeup

__all__ = [
    "AsyncBodies",
    "BackgroundThread",
    "CallbackThread",
    "Input",
    "LogThread",
    "Output",
    "OutputStore",
    "Piece",
    "Pool",
    "PoolExecutor",
    "Portal",
    "QueueFull",
    "RequestBody",
    "Tasks",
    "Wakeup",
    "current_portal",
    "empty_body",
    "in_thread",
]
