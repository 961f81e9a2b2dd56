"""Safetensors checkpoints: opened and compared without torch, written tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgrow_cli.checkpoint.dtypes import SAFETENSORS_BITS, nbytes, torch_form
from netgrow_cli.checkpoint.names import choose_prefix
from netgrow_cli.checkpoint.positioned import naming, open_empty, read_at, read_into, write_at
from netgrow_cli.checkpoint.safetensors_header import (
    Entry,
    Header,
    HeaderError,
    encode_header,
    header_length,
    layout,
    parse_header,
)
from netgrow_cli.checkpoint.types import Checkpoint, Region, TensorInfo, Writer
from netgrow_cli.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; tensor data is not touched."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            length = header_length(file.read(8), size)
            return parse_header(read_at(file.fileno(), 8, length), size)
    except HeaderError as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {error}") from None
    except EOFError as error:
        raise CheckpointError(f"{path}: {error}; something else is changing it") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


class SafetensorsCheckpoint(Checkpoint):
    """An opened safetensors file. Tensors are in the order of their bytes; names never tie."""

    format = "safetensors"
    key = None

    def __init__(self, path: Path, *, prefix: str | None = None) -> None:
        header = read_header(path)
        self.path = path
        self.prefix = choose_prefix([entry.info.name for entry in header.entries], prefix, str(path))
        self.metadata = dict(header.metadata or {})
        self._has_metadata = header.metadata is not None
        self._data_start = header.data_start
        self._entries = {entry.info.name[len(self.prefix) :]: entry for entry in header.entries}
        self.tensors = {
            name: TensorInfo(name, entry.info.shape, entry.info.dtype) for name, entry in self._entries.items()
        }
        self._file = path.open("rb", buffering=0)

    def read(self, name: str) -> torch.Tensor:
        import torch

        entry = self._entries[name]
        dtype, shape = torch_form(entry.info.dtype, entry.info.shape)
        raw = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
        try:
            read_into(self._file.fileno(), self._data_start + entry.start, raw.numpy().data)
        except EOFError as error:
            raise self._shrunk(name, error) from None
        return raw.view(dtype).reshape(shape)

    def read_bytes(self, name: str) -> bytes:
        entry = self._entries[name]
        try:
            return read_at(self._file.fileno(), self._data_start + entry.start, entry.stop - entry.start)
        except EOFError as error:
            raise self._shrunk(name, error) from None

    def region(self, name: str) -> Region | None:
        entry = self._entries[name]
        return Region(self._file.fileno(), self._data_start + entry.start, entry.stop - entry.start)

    def tree(self) -> Any:
        return None

    def writer(
        self,
        path: Path,
        tensors: Sequence[TensorInfo],
        *,
        metadata: Mapping[str, str] | None = None,
        replace: Mapping[tuple[str | int, ...], Any] | None = None,
    ) -> Writer:
        if replace:
            raise ValueError("a safetensors file has nothing beside its tensors to replace")
        self.require_same_names(tensors)
        merged = {**self.metadata, **(metadata or {})}
        return SafetensorsWriter(
            path, tensors, metadata=merged if merged or self._has_metadata else None, prefix=self.prefix
        )

    def close(self) -> None:
        self._file.close()

    def _shrunk(self, name: str, error: EOFError) -> CheckpointError:
        return CheckpointError(f"{self.path}: tensor {name!r}: {error}; something else is changing it")


class SafetensorsWriter(Writer):
    """Writes the header at once and each tensor at its place, in whatever order tensors come."""

    def __init__(
        self,
        path: Path,
        tensors: Sequence[TensorInfo],
        *,
        metadata: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> None:
        for info in tensors:
            if info.dtype not in SAFETENSORS_BITS:
                raise CheckpointError(f"tensor {info.name!r} is {info.dtype}, which safetensors cannot hold")
            if nbytes(info.dtype, info.shape) * 8 != _bits(info):
                raise ValueError(f"tensor {info.name!r}: {info.dtype} {list(info.shape)} ends within a byte")
        stored = [TensorInfo(prefix + info.name, info.shape, info.dtype) for info in tensors]
        if len({info.name for info in stored}) < len(stored):
            raise ValueError(f"two tensors for {path} have the same name")
        entries = layout(stored)
        head = encode_header(entries, metadata)
        self._path = path
        self._data_start = len(head)
        self._missing: dict[str, Entry] = {entry.info.name[len(prefix) :]: entry for entry in entries}
        self._file = open_empty(path)
        with naming(path):
            write_at(self._file.fileno(), 0, head)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        from netgrow_cli.checkpoint.tensor_bytes import as_bytes, check

        if name not in self._missing:
            raise ValueError(f"tensor {name!r} was not announced, or is written twice")
        entry = self._missing[name]
        check(entry.info, tensor)
        with naming(self._path):
            write_at(self._file.fileno(), self._data_start + entry.start, as_bytes(tensor))
        del self._missing[name]

    def region(self, name: str) -> Region | None:
        entry = self._missing.pop(name, None)
        if entry is None:
            raise ValueError(f"tensor {name!r} was not announced, or is written twice")
        return Region(self._file.fileno(), self._data_start + entry.start, entry.stop - entry.start)

    def finish(self) -> None:
        if self._missing:
            raise ValueError(f"tensors announced and never written: {', '.join(self._missing)}")
        with naming(self._path):
            self._file.close()


def _bits(info: TensorInfo) -> int:
    bits = SAFETENSORS_BITS[info.dtype]
    for size in info.shape:
        bits *= size
    return bits
