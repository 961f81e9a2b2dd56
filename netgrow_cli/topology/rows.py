"""A large matrix of a checkpoint, a few rows at a time: to compute with it without holding it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from netgrow_cli.checkpoint.dtypes import nbytes, torch_form
from netgrow_cli.checkpoint.positioned import read_into
from netgrow_cli.checkpoint.types import Checkpoint, Region, TensorInfo
from netgrow_cli.errors import CheckpointError

LARGE = 1 << 21
"""Elements from which on a matrix is read by rows."""

BLOCK = 1 << 19
"""Elements that are read and converted at once: what a processor's own cache holds, in float64 too."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a floating tensor of two axes, read where they are needed."""

    checkpoint: Checkpoint
    info: TensorInfo
    device: str = "cpu"

    def blocks(self, dtype: Any) -> Iterator[tuple[int, Any]]:
        """Blocks of rows in `dtype`, each with its first row; one stands until the next is asked for."""
        count, width = self.info.shape
        step = max(1, BLOCK // width)
        region = self.checkpoint.region(self.info.name)
        if region is None:
            tensor = self.checkpoint.read(self.info.name)
            for start in range(0, count, step):
                yield start, tensor[start : start + step].to(dtype).to(self.device)
            return
        import torch

        own, _ = torch_form(self.info.dtype, self.info.shape)
        raw = torch.empty(min(step, count), width, dtype=own)
        made = torch.empty(min(step, count), width, dtype=dtype)
        for start in range(0, count, step):
            rows = min(step, count - start)
            self._read(region, start, rows, raw)
            block = made[:rows].copy_(raw[:rows])
            yield start, block if self.device == "cpu" else block.to(self.device)

    def at(self, indices: Any, dtype: Any) -> Any:
        """The rows that integers of any shape choose, along a new last axis."""
        import torch

        wanted, place = torch.unique(indices.cpu(), return_inverse=True)
        if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < self.info.shape[0]:
            raise IndexError(f"{self.info.name} has {self.info.shape[0]} rows, and another one is asked for")
        region = self.checkpoint.region(self.info.name)
        if region is None:
            table = self.checkpoint.read(self.info.name)[wanted]
        else:
            own, _ = torch_form(self.info.dtype, self.info.shape)
            table = torch.empty(len(wanted), self.info.shape[1], dtype=own)
            for number, row in enumerate(wanted.tolist()):
                self._read(region, row, 1, table[number : number + 1])
        return table.to(dtype)[place].to(self.device)

    def _read(self, region: Region, start: int, rows: int, into: Any) -> None:
        """Fill the first `rows` rows of a buffer."""
        size = nbytes(self.info.dtype, (1, self.info.shape[1]))
        import torch

        buffer = into[:rows].view(torch.uint8).reshape(-1).numpy().data
        try:
            read_into(region.fd, region.start + start * size, buffer)
        except EOFError as error:
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {self.info.name!r}: {error}; something else is changing it"
            ) from None


def rows_of(checkpoint: Checkpoint, name: str, device: str = "cpu") -> Rows | None:
    """The rows of a tensor, where it is so large that it pays, and can be read so."""
    info = checkpoint.tensors[name]
    large = len(info.shape) == 2 and math.prod(info.shape) >= LARGE
    return Rows(checkpoint, info, device) if large and info.dtype in ("F64", "F32", "F16", "BF16") else None
