"""The only place where threads meet the loop: pool, output, wake-ups, the log's thread."""

from waitress_async.bridge.in_thread import in_thread
from waitress_async.bridge.logs import LogThread
from waitress_async.bridge.output import Output
from waitress_async.bridge.pool import Pool, QueueFull
from waitress_async.bridge.wakeup import Wakeup

__all__ = ["LogThread", "Output", "Pool", "QueueFull", "Wakeup", "in_thread"]
