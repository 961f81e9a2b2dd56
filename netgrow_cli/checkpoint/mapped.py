"""Regions of files compared where the system's cache has them, without reading them into buffers first.

A file that somebody shortens meanwhile ends the process that looks at its map (SIGBUS), which nothing can catch. So
this is for a process of its own, whose end another one survives and makes good; elsewhere files are read
(`transfer.same_bytes`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterator

from netgrow_cli.checkpoint.transfer import Advance, nothing, part
from netgrow_cli.checkpoint.types import Region

_WINDOW = 1 << 25
"""Bytes that are mapped at once: few calls, and little address space."""


def same_mapped(old: Region, new: Region, advance: Advance = nothing) -> bool:
    """Whether two regions of the same size hold the same bytes. EOFError where a file ends before its region does.

    Linux only (the C library is taken from there).
    """
    for done in range(0, old.size, _WINDOW):
        size = min(_WINDOW, old.size - done)
        with _mapped(part(old, done, size)) as one, _mapped(part(new, done, size)) as other:
            if _memcmp()(one, other, size) != 0:
                return False
        advance(size)
    return True


@contextlib.contextmanager
def _mapped(region: Region) -> Iterator[int]:
    """The address at which a region can be looked at."""
    before = region.start % mmap.ALLOCATIONGRANULARITY
    try:
        # (Private, so that ctypes takes it for something that may be written to; nobody does, and no page is copied.)
        whole = mmap.mmap(region.fd, before + region.size, offset=region.start - before, access=mmap.ACCESS_COPY)
    except ValueError:
        raise EOFError(f"the file ends before byte {region.start + region.size}") from None
    with whole:
        first = ctypes.c_char.from_buffer(whole)
        try:
            yield ctypes.addressof(first) + before
        finally:
            del first  # (a map with somebody looking at it cannot be closed)


@functools.cache
def _memcmp() -> Callable[[int, int, int], int]:
    """The C library's, which lets other threads of Python run meanwhile."""
    assert sys.platform == "linux"
    found = ctypes.CDLL(None).memcmp
    found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return found
