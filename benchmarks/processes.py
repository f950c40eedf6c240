"""What a server's processes use, from /proc: processor time, memory, descriptors, threads. Linux only."""

import os
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

INTERVAL = 0.01
MIB = 1 << 20
_CPUCLOCK_SCHED = 2


def tree(pid: int) -> list[int]:
    """The process and all that descend from it. A server may be several, and most work is in the children."""
    pids = [pid]
    for parent in pids:  # which grows meanwhile
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                pids += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
        except OSError:
            pass  # it has ended
    return pids


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes, all threads, to the nanosecond: /proc rounds it to 10 ms."""
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)  # as clock_getcpuclockid(3) does
        except OSError:
            pass  # it has ended
    return total


def status(pid: int) -> dict[str, int]:
    """The numbers of /proc/PID/status, sizes in bytes; empty for a process that has ended."""
    numbers = {}
    for line in _read(pid, "status").splitlines():
        name, _, value = line.partition(":")
        match value.split():
            case [number, "kB"]:
                numbers[name] = int(number) * 1024
            case [number] if number.isdecimal():
                numbers[name] = int(number)
    return numbers


def anonymous(pids: Iterable[int]) -> int:
    """Bytes of memory with no file on disk behind it, from status: cheap, and some pages behind the truth."""
    each = map(status, pids)
    return sum(numbers.get("RssAnon", 0) + numbers.get("RssShmem", 0) for numbers in each)


def exactly_anonymous(pids: Iterable[int]) -> int:
    """The same, exactly, from smaps_rollup: the system walks all pages for it."""
    total = 0
    for pid in pids:
        for line in _read(pid, "smaps_rollup").splitlines():
            name, _, value = line.partition(":")
            if name in ("Anonymous", "Pss_Shmem"):
                total += int(value.split()[0]) * 1024
    return total


def settled_anonymous(
    pids: Iterable[int], *, steady: float = 1.0, within: float = 15.0, slack: int = 65536
) -> int:
    """`exactly_anonymous` once it has kept within `slack` for `steady` seconds, or after `within`."""
    pids = list(pids)
    deadline = time.monotonic() + within
    lowest = highest = latest = exactly_anonymous(pids)
    since = time.monotonic()
    while time.monotonic() < min(since + steady, deadline):
        time.sleep(0.1)
        latest = exactly_anonymous(pids)
        lowest, highest = min(lowest, latest), max(highest, latest)
        if highest - lowest > slack:
            lowest = highest = latest
            since = time.monotonic()
    return latest


def descriptors(pid: int) -> tuple[int, int]:
    """Open descriptors, and how many have a file without a name: temporary files (the log is not counted)."""
    count = nameless = 0
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            link = os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # closed meanwhile
        count += 1
        nameless += link.endswith("(deleted)") and int(name) > 2
    return count, nameless


def touch_pages(size: int) -> None:
    """Has the system take that much memory into use, for a file, and free it again.

    A virtual machine gets memory from its host when it first touches it, and whoever is given such pages
    pays for them: without this, uploads to a temporary file took three times as long in some rounds.
    """
    block = bytes(MIB)
    with tempfile.TemporaryFile() as file:
        for _ in range(0, size, MIB):
            file.write(block)


class Watch:
    """What the tree of a process uses during a `with` block: processor time, and memory at its peak.

    `anonymous_peak` is `anonymous` of all processes together, sampled; `resident_peak` is VmHWM of each (the
    system's own record, which is started anew here), summed. Both count from what was there at the start.
    """

    anonymous_peak = 0
    resident_peak = 0
    cpu_seconds = 0.0

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._pids = tree(self._pid)
        for pid in self._pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM := VmRSS; proc(5)
        self._resident = {pid: status(pid).get("VmRSS", 0) for pid in self._pids}
        self._anonymous = anonymous(self._pids)
        self._cpu = cpu_seconds(self._pids)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        pids = tree(self._pid)
        self.cpu_seconds = cpu_seconds(pids) - self._cpu
        self.resident_peak = sum(
            max(0, status(pid).get("VmHWM", 0) - self._resident.get(pid, 0)) for pid in pids
        )

    def _sample(self) -> None:
        samples = 0
        while not self._ended.wait(INTERVAL):
            samples += 1
            if samples % 50 == 0:  # twice a second will do to see new processes
                self._pids = tree(self._pid)
            self.anonymous_peak = max(self.anonymous_peak, anonymous(self._pids) - self._anonymous)


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
