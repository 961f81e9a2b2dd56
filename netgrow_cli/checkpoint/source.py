"""A tensor's stored elements, read piece by piece: from a region of a file, or from memory."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.checkpoint.numbers import stored_dtype
from netgrow_cli.checkpoint.positioned import read_into
from netgrow_cli.checkpoint.transfer import Advance, nothing, part, same_bytes
from netgrow_cli.checkpoint.types import Checkpoint, Region
from netgrow_cli.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Array = NDArray[Any]

_SAMPLED = 1 << 16
_RUNS = 64


class Source(abc.ABC):
    """A tensor of the given shape and dtype (in safetensors' words). What it hands out is not to be written to.

    hands_out_views: nothing is copied to hand it out.
    """

    hands_out_views = False

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape = shape
        self.dtype = dtype

    @abc.abstractmethod
    def flat(self, start: int, count: int) -> Array:
        """`count` stored elements from the `start`-th, in row-major order."""

    def fill(self, values: Array, start: int) -> None:
        """As many stored elements as fit into an array in one run of memory, from the `start`-th on."""
        values.reshape(-1)[:] = self.flat(start, values.size)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    def rows(self, first: int, last: int) -> Array:
        """Entries first..last-1 along axis 0."""
        inner = math.prod(self.shape[1:])
        return self.flat(first * inner, (last - first) * inner).reshape(last - first, *self.shape[1:])

    def whole(self) -> Array:
        """All of it."""
        return self.flat(0, self.size).reshape(self.shape)

    def sample(self) -> Array:
        """All of a small tensor; of a large one some ten thousand elements from evenly spaced places."""
        if self.size <= _SAMPLED:
            return self.flat(0, self.size)
        length, step = _SAMPLED // _RUNS, self.size // _RUNS
        return np.concatenate([self.flat(run * step, length) for run in range(_RUNS)])


class ArraySource(Source):
    """A tensor in memory."""

    hands_out_views = True

    def __init__(self, values: Array, dtype: str) -> None:
        super().__init__(values.shape, dtype)
        self._values = np.ascontiguousarray(values).reshape(-1)

    def flat(self, start: int, count: int) -> Array:
        return self._values[start : start + count]


class RegionSource(Source):
    """A tensor in a file. where: which, for messages."""

    def __init__(self, region: Region, shape: tuple[int, ...], dtype: str, where: str) -> None:
        super().__init__(shape, dtype)
        self.region = region
        self.where = where

    def run(self, start: int, count: int) -> Region:
        """Where `count` elements from the `start`-th lie."""
        item = self.region.size // self.size if self.size else 0
        return part(self.region, start * item, count * item)

    def same(self, start: int, other: RegionSource, other_start: int, count: int, advance: Advance = nothing) -> bool:
        """Whether so many elements are, bit for bit, those of another tensor in a file, of the same dtype."""
        return same_bytes(self.run(start, count), other.run(other_start, count), advance)

    def flat(self, start: int, count: int) -> Array:
        values = np.empty(count, stored_dtype(self.dtype))
        self.fill(values, start)
        return values

    def fill(self, values: Array, start: int) -> None:
        if values.size:
            offset = self.region.start + start * values.itemsize
            try:
                read_into(self.region.fd, offset, values.reshape(-1).view(np.uint8).data)
            except EOFError as error:
                raise CheckpointError(f"{self.where}: {error}; something else is changing it") from None


Open = Callable[[str], Source]
"""A tensor by its name."""

Of = Callable[[Checkpoint, str], Source]
"""How tensors of a checkpoint are got at."""


def source_of(checkpoint: Checkpoint, name: str) -> Source:
    """One tensor of a checkpoint."""
    region, info = checkpoint.region(name), checkpoint.tensors[name]
    if region is not None:
        return RegionSource(region, info.shape, info.dtype, f"{checkpoint.path}: tensor {name!r}")
    return tensor_source(checkpoint.read(name), info.dtype)


def tensor_source(tensor: torch.Tensor, dtype: str | None = None) -> Source:
    """A torch tensor, whose memory is shared where it lies in one run."""
    from netgrow_cli.checkpoint.dtypes import name_of
    from netgrow_cli.checkpoint.tensor_bytes import as_bytes

    dtype = dtype or name_of(tensor.dtype) or "U8"
    values = np.frombuffer(as_bytes(tensor), stored_dtype(dtype))
    return ArraySource(values.reshape(tuple(tensor.shape)) if values.size == tensor.numel() else values, dtype)
