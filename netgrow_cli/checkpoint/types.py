"""What the rest of netgrow knows of a checkpoint file: names, shapes and dtypes, data on demand.

A plan is made from `TensorInfo` alone. Data is read tensor by tensor (`Checkpoint.read`) and
written tensor by tensor in an order fixed beforehand (`Writer.write`), so that memory stays that
of one tensor whatever the file's size.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from netgrow_cli.frozen import frozen

if TYPE_CHECKING:
    import torch


@frozen
class TensorInfo:
    """One tensor of a checkpoint, without its data.

    name: as in the model's state dict, wrappers such as `module.` taken off.
    shape: sizes of its axes; `()` for a scalar.
    dtype: in the words of safetensors: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL F8_E4M3 ...
    tied_to: name of the earlier tensor that is the very same storage and view, else None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    tied_to: str | None = None


@frozen
class Region:
    """A run of bytes in an open file: a tensor's values, row-major and little-endian."""

    fd: int
    start: int
    size: int


class Writer(abc.ABC):
    """Writes a new checkpoint file; takes the tensors one at a time, in the order it was made with.

    carries: whether a tensor that stays as it is should be given to `write` as it was read, because the file then keeps
    what it shares with others.
    """

    carries = False

    @abc.abstractmethod
    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Take the next tensor; name, shape and dtype must be the announced ones (ValueError otherwise)."""

    def region(self, name: str) -> Region | None:
        """Where an announced tensor's bytes go, for who fills all of them in its own way, from any thread and before
        `finish`; this stands for its `write`. None where the tensor must be given to `write`."""
        return None

    @abc.abstractmethod
    def finish(self) -> None:
        """Complete the file and close it."""


class Checkpoint(abc.ABC):
    """An opened checkpoint. Opening validates all of the file's structure and reads no tensor data.

    format: "safetensors", "torch" or "distributed" (a folder of torch.distributed.checkpoint).
    tensors: the model's tensors in file order, by name without `prefix`.
    state_path: where the state dict lies in `tree()`.
    key: where the state dict lies in a training checkpoint ("model_state_dict", "a.b"), None at the root.
    prefix: what was taken off every name ("module.", "" if nothing).
    metadata: text to text (safetensors' `__metadata__`; empty for .pt).
    own_files: where the checkpoint is a folder, the names of its files in it; None for a file.
    """

    path: Path
    format: str
    tensors: Mapping[str, TensorInfo]
    key: str | None
    prefix: str
    metadata: Mapping[str, str]
    state_path: tuple[str | int, ...] = ()
    own_files: frozenset[str] | None = None

    @abc.abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """The tensor's data on the CPU, in its own dtype; not to be written to."""

    @abc.abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """The tensor's values as contiguous little-endian bytes; needs no torch for safetensors."""

    def region(self, name: str) -> Region | None:
        """Where the tensor's bytes lie in the file; None where they lie in no one run (views, old formats)."""
        return None

    @abc.abstractmethod
    def tree(self) -> Any:
        """Everything in the file as nested dicts and lists (.pt), for optimizer states; None for safetensors."""

    @abc.abstractmethod
    def writer(
        self,
        path: Path,
        tensors: Sequence[TensorInfo],
        *,
        metadata: Mapping[str, str] | None = None,
        replace: Mapping[tuple[str | int, ...], Any] | None = None,
    ) -> Writer:
        """A writer of a file of the same format and wrapping (key, prefix, ties, everything else carried over).

        tensors: the new infos, the same names in the same order as `self.tensors`.
        metadata: added over the file's own (safetensors).
        replace: by path into `tree()`, values that take the place of what is there (.pt; optimizer states).
        """

    def require_same_names(self, tensors: Sequence[TensorInfo]) -> None:
        """ValueError unless these are the checkpoint's tensors, in its order."""
        if [info.name for info in tensors] != list(self.tensors):
            raise ValueError(f"the new tensors of {self.path} must have the same names in the same order")

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
