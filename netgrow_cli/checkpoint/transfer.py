"""Bytes from one open file to another: by the system where it can, else through a small buffer."""

from __future__ import annotations

import collections
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from netgrow_cli.checkpoint.positioned import read_into, write_at
from netgrow_cli.checkpoint.types import Region

Advance = Callable[[int], None]
"""Is told how many bytes have been dealt with."""

# So much at once that the calls cost nothing, and so little that progress is seen.
_COPY = 1 << 25
_BUFFER = 1 << 19
# Two of these stay in the processor's cache.
COMPARED = 1 << 18
# Who cannot copy between these two files says one of these; old kernels say that data is at an end.
_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO}
_MOST_BUFFERS = 512
_MOST_WORKERS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def nothing(_: int) -> None:
    """Progress that nobody watches."""


def part(region: Region, start: int, size: int) -> Region:
    """A run of bytes within a region."""
    return Region(region.fd, region.start + start, size)


def copy(old: Region, new: Region, advance: Advance = nothing) -> None:
    """All bytes of `old` to `new`, which is as long. Raises EOFError where the old file has become shorter.

    `copy_file_range` leaves the data in the kernel, and where the file system can, shares the blocks (reflink).
    """
    done = _copy_in_kernel(old, new, advance) if hasattr(os, "copy_file_range") else 0
    buffer = memoryview(bytearray(min(_BUFFER, max(1, old.size - done))))
    while done < old.size:
        piece = buffer[: min(len(buffer), old.size - done)]
        read_into(old.fd, old.start + done, piece)
        write_at(new.fd, new.start + done, piece)
        done += len(piece)
        advance(len(piece))


def _copy_in_kernel(old: Region, new: Region, advance: Advance) -> int:
    """How many bytes the kernel copied before it could not."""
    done = 0
    while done < old.size:
        try:
            count = os.copy_file_range(old.fd, new.fd, min(_COPY, old.size - done), old.start + done, new.start + done)
        except OSError as error:
            if error.errno in _CANNOT:
                break
            raise
        if count == 0:
            break
        done += count
        advance(count)
    return done


def same_bytes(old: Region, new: Region, advance: Advance = nothing) -> bool:
    """Whether two regions of the same size hold the same bytes."""
    one, other = bytearray(COMPARED), bytearray(COMPARED)
    for done in range(0, old.size, COMPARED):
        length = min(COMPARED, old.size - done)
        if length < len(one):
            one, other = bytearray(length), bytearray(length)
        read_into(old.fd, old.start + done, memoryview(one))
        read_into(new.fd, new.start + done, memoryview(other))
        if one != other:
            return False
        advance(length)
    return True


def read_scattered(fd: int, start: int, buffers: Sequence[memoryview]) -> None:
    """One run of a file into several buffers, one after the other. EOFError where the file ends before."""
    for first in range(0, len(buffers), _MOST_BUFFERS):
        group = buffers[first : first + _MOST_BUFFERS]
        total = sum(map(len, group))
        if not hasattr(os, "preadv") or os.preadv(fd, group, start) != total:
            offset = start
            for buffer in group:  # (a short count: once more, piece by piece)
                read_into(fd, offset, buffer)
                offset += len(buffer)
        start += total


class Lanes(Generic[Item]):
    """Tasks by the file that they write to, each with its bytes. Each `run` takes one of a file that the fewest others
    write to, since the system lets only one at a time write to a file, and lets the others burn their time waiting; of
    these, one of the file with the most left to write, so that all files end together."""

    def __init__(self, tasks: Sequence[tuple[int, int, Item]]) -> None:
        self._waiting: dict[int, collections.deque[tuple[int, Item]]] = collections.defaultdict(collections.deque)
        self._left: collections.Counter[int] = collections.Counter()
        for lane, size, task in tasks:
            self._waiting[lane].append((size, task))
            self._left[lane] += size
        self._busy: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()

    def run(self, do: Callable[[Item], Result]) -> Result:
        """Do one of the tasks that nobody has taken yet."""
        with self._lock:
            lane = min(self._waiting, key=lambda lane: (self._busy[lane], -self._left[lane]))
            size, task = self._waiting[lane].popleft()
            if not self._waiting[lane]:
                del self._waiting[lane]
            self._left[lane] -= size
            self._busy[lane] += 1
        try:
            return do(task)
        finally:
            with self._lock:
                self._busy[lane] -= 1


def in_parallel(task: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in order; files are read and written in parallel where the system has positioned calls."""
    workers = min(_MOST_WORKERS, os.cpu_count() or 1) if hasattr(os, "pread") else 1
    if workers < 2 or len(items) < 2:
        yield from map(task, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(task, item) for item in items]
        try:
            yield from (future.result() for future in futures)
        finally:  # (an error or an interrupt: what has not begun does not begin)
            pool.shutdown(wait=True, cancel_futures=True)
