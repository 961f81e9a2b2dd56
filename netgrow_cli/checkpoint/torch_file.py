"""Torch checkpoints: whatever torch.save wrote, opened without running code that is in it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from netgrow_cli.checkpoint.dtypes import logical_shape, name_of
from netgrow_cli.checkpoint.names import choose_prefix
from netgrow_cli.checkpoint.siblings import partial_prefix
from netgrow_cli.checkpoint.state_dicts import TreePath, select_state_dict
from netgrow_cli.checkpoint.tensor_bytes import as_bytes, quantiser_bytes
from netgrow_cli.checkpoint.torch_load import load_tree
from netgrow_cli.checkpoint.torch_records import Records
from netgrow_cli.checkpoint.torch_tree import rebuild
from netgrow_cli.checkpoint.torch_writer import TorchWriter
from netgrow_cli.checkpoint.types import Checkpoint, Region, TensorInfo, Writer
from netgrow_cli.errors import CheckpointError


class TorchCheckpoint(Checkpoint):
    """An opened torch file. Tensors are in the order of the state dict; data is mapped, not loaded."""

    format = "torch"
    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, kind: str, *, key: str | None = None, prefix: str | None = None) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0) if kind == "zip" and path.suffix != ".safetensors" else None
        try:
            self._load(path, kind, key, prefix)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path, kind: str, key: str | None, prefix: str | None) -> None:
        self._tree = load_tree(path, kind)
        self.state_path, state = select_state_dict(self._tree, key, path)
        self.key = ".".join(map(str, self.state_path)) or None
        stored = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        if odd := [name for name in stored if not isinstance(name, str)]:
            raise CheckpointError(f"{path}: tensor names must be text; found {odd[0]!r} ({type(odd[0]).__name__})")
        weights = [name for name, value in stored.items() if value.dim() > 0]
        if prefix and partial_prefix(weights, prefix):
            # Beside it lie other copies of the same names, and their counters; they are carried over.
            self.prefix, stored = prefix, {n: value for n, value in stored.items() if n.startswith(prefix)}
        else:
            self.prefix = choose_prefix(list(stored), prefix, str(path))
        self._values = {name[len(self.prefix) :]: value for name, value in stored.items()}
        self.tensors = _infos(self._values, path)

    def read(self, name: str) -> torch.Tensor:
        return self._values[name].detach()

    def read_bytes(self, name: str) -> bytes:
        tensor = self._values[name]
        quantiser = quantiser_bytes(tensor) if tensor.is_quantized else b""
        return bytes(as_bytes(tensor)) + quantiser

    def region(self, name: str) -> Region | None:
        return self._records.region(self._values[name].detach()) if self._records is not None else None

    @functools.cached_property
    def _records(self) -> Records | None:
        """Where the file's storages lie; None for one that is not mapped."""
        return Records(self._file, self._tree) if self._file is not None else None

    def tree(self) -> Any:
        return self._tree

    def writer(
        self,
        path: Path,
        tensors: Sequence[TensorInfo],
        *,
        metadata: Mapping[str, str] | None = None,
        replace: Mapping[TreePath, Any] | None = None,
    ) -> Writer:
        self.require_same_names(tensors)
        tree, at, prefix, others = self._tree, self.state_path, self.prefix, dict(replace or {})

        def assemble(values: Mapping[str, torch.Tensor], write_deferred: Callable[[Any], Any]) -> Any:
            edits: dict[TreePath, Any] = {(*at, prefix + name): value for name, value in values.items()}
            if clash := next((place for place in others if place in edits), None):
                raise ValueError(f"{clash} is one of the model's tensors; it is written, not replaced")
            edits.update({place: write_deferred(value) for place, value in others.items()})
            return rebuild(tree, edits)

        return TorchWriter(path, tensors, assemble, self._values, self._records)

    def close(self) -> None:
        """Let go of the tensors; the file stays mapped while any of them is in use elsewhere."""
        self._values = {}
        self._tree = None
        if self._file is not None:
            self._file.close()


def _infos(values: Mapping[str, torch.Tensor], path: Path) -> dict[str, TensorInfo]:
    first_by_view: dict[tuple[Any, ...], str] = {}
    infos: dict[str, TensorInfo] = {}
    for name, tensor in values.items():
        dtype = _dtype(name, tensor, path)
        first = first_by_view.setdefault(view_of(tensor), name)
        shape = logical_shape(dtype, tuple(tensor.shape))
        infos[name] = TensorInfo(name, shape, dtype, None if first == name else first)
    return infos


def view_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same numbers in the same memory."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _dtype(name: str, tensor: torch.Tensor, path: Path) -> str:
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise CheckpointError(f"{path}: tensor {name!r} is {kind}; netgrow takes dense tensors only")
    if tensor.device.type != "cpu":
        raise CheckpointError(f"{path}: tensor {name!r} is on the device {tensor.device} and holds no data")
    dtype = name_of(tensor.dtype)
    if dtype is None:
        raise CheckpointError(f"{path}: tensor {name!r} has the dtype {tensor.dtype}, unknown to netgrow")
    return dtype
