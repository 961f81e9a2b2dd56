"""A large matrix of a checkpoint, a few rows at a time: to compute with it without holding it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from netgrow_cli.checkpoint.dtypes import torch_form
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.topology.library import decoded, given, in_numpy, numbers

if TYPE_CHECKING:
    from netgrow_cli.checkpoint.source import Source

LARGE = 1 << 21
"""Elements from which on a matrix is read by rows."""

BLOCK = 1 << 18
"""Elements that are read and converted at once: what a processor's own cache holds, in float64 too."""

NUMPY_BLOCK = 1 << 16
"""The same for numpy, which makes an array more of each block on the way."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a floating tensor of two axes, read where they are needed."""

    source: Source
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        """How many rows, of how many numbers each."""
        return self.source.shape

    def blocks(self, dtype: Any) -> Iterator[tuple[int, Any]]:
        """Blocks of rows in `dtype`, each with its first row; one stands until the next is asked for."""
        count, width = self.shape
        if in_numpy(dtype):
            yield from self._arrays(dtype)
            return
        import torch

        step = max(1, min(count, BLOCK // max(1, width)))
        made = torch.empty(step, width, dtype=dtype)
        for start in range(0, count, step):
            stop = min(count, start + step)
            block = made[: stop - start].copy_(as_tensor(self.source, self.source.rows(start, stop)))
            yield start, block.to(self.device)

    def _arrays(self, dtype: Any) -> Iterator[tuple[int, Any]]:
        import numpy as np

        from netgrow_cli.checkpoint.numbers import stored_dtype

        count, width = self.shape
        step = max(1, min(count, NUMPY_BLOCK // max(1, width)))
        stored, made = np.empty((step, width), stored_dtype(self.source.dtype)), np.empty((step, width), dtype)
        for start in range(0, count, step):
            size = min(step, count - start)
            self.source.fill(stored[:size], start * width)
            made[:size] = decoded(self.source.dtype, stored[:size])
            yield start, made[:size]

    def at(self, indices: Any, dtype: Any) -> Any:
        """The rows that integers of any shape choose, along a new last axis."""
        import numpy as np

        chosen = indices if in_numpy(dtype) else indices.cpu().numpy()
        wanted, place = np.unique(chosen, return_inverse=True)
        if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < self.shape[0]:
            raise IndexError(f"a table has {self.shape[0]} rows, and another one is asked for")
        rows = [self.source.rows(row, row + 1) for row in wanted.tolist()]
        table = numbers(self.source, np.dtype(np.float64), np.concatenate(rows or [self.source.rows(0, 0)]))
        return given(table[place.reshape(chosen.shape)], dtype, self.device)


def as_tensor(source: Source, stored: Any) -> Any:
    """Stored elements of a floating tensor as torch has them."""
    import torch

    dtype, _ = torch_form(source.dtype, source.shape)
    return torch.from_numpy(stored.view(f"i{stored.itemsize}")).view(dtype)


def is_large(info: TensorInfo) -> bool:
    """Whether it pays to read a tensor by rows, and it can be."""
    size = math.prod(info.shape)
    return len(info.shape) == 2 and size >= LARGE and info.dtype in ("F64", "F32", "F16", "BF16")
