"""A large matrix of a checkpoint, a few rows at a time: to compute with it without holding it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from netgrow_cli.checkpoint.dtypes import torch_form
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.library import decoded, given, in_numpy, numbers

if TYPE_CHECKING:
    from netgrow_cli.checkpoint.source import Source

LARGE = 1 << 21
"""Elements from which on a matrix is read by rows."""

BLOCK = 1 << 18
"""Elements that are read and converted at once: what a processor's own cache holds, in float64 too."""

NUMPY_BLOCK = 1 << 16
"""The same for numpy, which makes an array more of each block on the way."""

NUMPY_ROWS = 32
"""The fewest rows of a block, since its products with fewer take longer than the cache saves."""


@frozen
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
        for start, stored in stored_blocks(self.source, step):
            block = made[: len(stored)].copy_(as_tensor(self.source, stored))
            yield start, block.to(self.device)

    def _arrays(self, dtype: Any) -> Iterator[tuple[int, Any]]:
        import numpy as np

        count, width = self.shape
        step = max(1, min(count, max(NUMPY_ROWS, NUMPY_BLOCK // max(1, width))))
        made = np.empty((step, width), dtype)
        for start, stored in stored_blocks(self.source, step):
            made[: len(stored)] = decoded(self.source.dtype, stored)
            yield start, made[: len(stored)]

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


def stored_blocks(source: Source, step: int) -> Iterator[tuple[int, Any]]:
    """All of a tensor as it is stored, so many rows at a time; each stands until the next is asked for."""
    import numpy as np

    from netgrow_cli.checkpoint.numbers import stored_dtype

    count, inner = source.shape[0], math.prod(source.shape[1:])
    kept = None if source.hands_out_views else np.empty((step, *source.shape[1:]), stored_dtype(source.dtype))
    for start in range(0, count, step):
        stop = min(start + step, count)
        if kept is None:
            yield start, source.rows(start, stop)
        else:
            source.fill(kept[: stop - start], start * inner)
            yield start, kept[: stop - start]


def as_tensor(source: Source, stored: Any) -> Any:
    """Stored elements of a floating tensor as torch has them."""
    import torch

    dtype, _ = torch_form(source.dtype, source.shape)
    if not stored.flags.writeable:  # (of which torch warns, though nobody writes)
        stored = stored.copy()
    return torch.from_numpy(stored.view(f"i{stored.itemsize}")).view(dtype)


def is_large(info: TensorInfo) -> bool:
    """Whether it pays to read a tensor by rows, and it can be."""
    size = math.prod(info.shape)
    return len(info.shape) == 2 and size >= LARGE and info.dtype in ("F64", "F32", "F16", "BF16")
