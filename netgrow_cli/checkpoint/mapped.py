"""Files looked at where the system's cache has them, without reading them into buffers first.

A file that somebody shortens meanwhile ends the process that looks at its map (SIGBUS), which nothing can catch. So
this is for a process of its own, whose end another one survives and makes good; elsewhere files are read
(`source.source_of`).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.checkpoint.numbers import stored_dtype
from netgrow_cli.checkpoint.source import RegionSource, Source, source_of
from netgrow_cli.checkpoint.transfer import Advance, nothing, part
from netgrow_cli.checkpoint.types import Checkpoint, Region
from netgrow_cli.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_WINDOW = 1 << 25
"""Bytes that are mapped at once to be compared: few calls, and little address space."""


class MappedSource(RegionSource):
    """A tensor in a file, of which views are handed out. It is mapped from when one is asked for until it and the last
    of them are gone."""

    hands_out_views = True

    @functools.cached_property
    def _bytes(self) -> Array:
        try:
            return mapped(self.region)
        except EOFError as error:
            raise CheckpointError(f"{self.where}: {error}; something else is changing it") from None

    def flat(self, start: int, count: int) -> Array:
        stored = stored_dtype(self.dtype)
        return self._bytes[start * stored.itemsize : (start + count) * stored.itemsize].view(stored)

    def fill(self, values: Array, start: int) -> None:
        Source.fill(self, values, start)

    def same(self, start: int, other: RegionSource, other_start: int, count: int, advance: Advance = nothing) -> bool:
        return same_mapped(self.run(start, count), other.run(other_start, count), advance)


def mapped_source_of(checkpoint: Checkpoint, name: str) -> Source:
    """One tensor of a checkpoint; mapped where it lies in a file as it is."""
    found = source_of(checkpoint, name)
    if not isinstance(found, RegionSource):
        return found
    return MappedSource(found.region, found.shape, found.dtype, found.where)


def same_mapped(old: Region, new: Region, advance: Advance = nothing) -> bool:
    """Whether two regions of the same size hold the same bytes. EOFError where a file ends before its region does.

    Linux only (the C library is taken from there).
    """
    for done in range(0, old.size, _WINDOW):
        size = min(_WINDOW, old.size - done)
        one, other = mapped(part(old, done, size)), mapped(part(new, done, size))
        if _memcmp()(one.ctypes.data, other.ctypes.data, size) != 0:
            return False
        advance(size)
    return True


def mapped(region: Region) -> Array:
    """The bytes of a region, not to be written to; not on Windows.

    EOFError where the file ends before the region does, OSError where its file system maps none.
    """
    if not region.size:
        return np.zeros(0, np.uint8)
    before = region.start % mmap.ALLOCATIONGRANULARITY
    size, offset = before + region.size, region.start - before
    try:
        # (Private: some file systems share no map, and nobody writes.)
        whole = mmap.mmap(region.fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=offset)
    except ValueError:
        raise EOFError(f"the file ends before byte {region.start + region.size}") from None
    return np.frombuffer(whole, np.uint8, region.size, before)


@functools.cache
def _memcmp() -> Callable[[int, int, int], int]:
    """The C library's, which lets other threads of Python run meanwhile."""
    assert sys.platform == "linux"
    found = ctypes.CDLL(None).memcmp
    found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return found
