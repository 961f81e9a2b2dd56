"""Folders of torch.distributed.checkpoint (DCP), as FSDP and others save them, through torch's own API.

It stands on `torch.distributed.checkpoint.load` and `save` with FileSystemReader and FileSystemWriter, in one process.
The reader is given the metadata that `distributed_metadata` has checked, and objects beside tensors are loaded as
torch loads weights only. Imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import mmap
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from netgrow_cli.checkpoint.detect import DISTRIBUTED
from netgrow_cli.checkpoint.distributed_metadata import read_metadata
from netgrow_cli.checkpoint.dtypes import SAFETENSORS_BITS, name_of, torch_form
from netgrow_cli.checkpoint.names import choose_prefix
from netgrow_cli.checkpoint.safetensors_file import SafetensorsCheckpoint, SafetensorsWriter
from netgrow_cli.checkpoint.state_dicts import TreePath, select_state_dict
from netgrow_cli.checkpoint.tensor_bytes import as_bytes
from netgrow_cli.checkpoint.torch_load import plain_data, why
from netgrow_cli.checkpoint.torch_tree import rebuild
from netgrow_cli.checkpoint.torch_writer import DeferredTensor, WrittenTensor
from netgrow_cli.checkpoint.types import Checkpoint, Region, TensorInfo, Writer
from netgrow_cli.errors import CheckpointError

# Tensors wait here, outside of memory, until torch writes all of them at once.
_SPOOL = ".netgrow-spool"


class DistributedCheckpoint(Checkpoint):
    """An opened folder; tensors are read one at a time, put together from their shards."""

    format = "distributed"
    metadata: Mapping[str, str] = {}

    def __init__(self, folder: Path, *, key: str | None = None, prefix: str | None = None) -> None:
        self.path = folder
        self._lock = threading.Lock()  # nobody says that torch's load may run in several threads
        self._stored = read_metadata(folder)
        self.own_files = frozenset([DISTRIBUTED, *(info.relative_path for info in self._stored.storage_data.values())])
        self._names = _places(folder, self._stored)
        self.state_path, state = select_state_dict(self._outline(), key, folder)
        self.key = ".".join(map(str, self.state_path)) or None
        own = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        self.prefix = choose_prefix(list(own), prefix, str(folder))
        cut = len(self.prefix)
        self.tensors = {name[cut:]: _info(name[cut:], value, folder) for name, value in own.items()}

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._load(self._stored_name(name))
        return tensor

    def read_bytes(self, name: str) -> bytes:
        return bytes(as_bytes(self.read(name)))

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
        places = {info.name: (*self.state_path, self.prefix + info.name) for info in tensors}
        return DistributedWriter(path, tensors, places, lambda: self._tree, replace or {})

    def close(self) -> None:
        self.__dict__.pop("_tree", None)

    @functools.cached_property
    def _tree(self) -> Any:
        """All of the checkpoint; the model's own tensors without their values, everything else read."""
        own = {self._stored_name(name) for name in self.tensors}
        others = [stored for stored in self._names.values() if stored not in own]
        return self._assembled({**dict.fromkeys(own), **{stored: self._load(stored) for stored in others}})

    def _outline(self) -> Any:
        return self._assembled(dict.fromkeys(self._names.values()))

    def _assembled(self, values: Mapping[str, Any]) -> Any:
        """Nested as it was saved; a tensor without a value is one on the meta device."""
        root: dict[Any, Any] = {}
        for place, stored in self._names.items():
            entry, value = self._stored.state_dict_metadata[stored], values[stored]
            if value is None and isinstance(entry, TensorStorageMetadata):
                value = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            _put(root, place, value)
        return root

    def _stored_name(self, name: str) -> str:
        place: TreePath = (*self.state_path, self.prefix + name)
        return self._names[place]

    def _load(self, stored: str) -> Any:
        entry = self._stored.state_dict_metadata[stored]
        wanted: dict[str, Any] = {stored: None}
        if isinstance(entry, TensorStorageMetadata):
            wanted[stored] = torch.empty(entry.size, dtype=entry.properties.dtype)
        try:
            with self._lock, _alone(load) as alone:
                load(wanted, storage_reader=_Reader(self.path, self._stored), planner=_Planner(), **alone)
        except Exception as error:  # a damaged record raises anything
            raise CheckpointError(why(f"{self.path}: {stored!r}", error)) from None
        return wanted[stored]


class DistributedWriter(Writer):
    """Collects the tensors in a file beside the new ones, from where torch writes them.

    places: by name, where each is in the tree. tree: everything else.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[TensorInfo],
        places: Mapping[str, TreePath],
        tree: Any,
        replace: Mapping[TreePath, Any],
    ) -> None:
        for info in tensors:
            if info.dtype not in SAFETENSORS_BITS:
                raise CheckpointError(f"tensor {info.name!r} is {info.dtype}, which netgrow does not write there")
        self._folder = folder
        self._places = places
        self._tree = tree
        self._replace = replace
        self._spool = SafetensorsWriter(folder / _SPOOL, tensors)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        self._spool.write(name, tensor)

    def region(self, name: str) -> Region | None:
        return self._spool.region(name)

    def finish(self) -> None:
        self._spool.finish()
        with _mapped(self._folder / _SPOOL) as values:
            edits: dict[TreePath, Any] = {self._places[name]: value for name, value in values.items()}
            edits |= {place: _made(value, values) for place, value in self._replace.items()}
            state = rebuild(self._tree(), edits)
            with _alone(save) as alone:
                save(state, storage_writer=_Writer(self._folder), **alone)
        (self._folder / _SPOOL).unlink()


class _Reader(FileSystemReader):
    """Torch's, which is given the metadata and does not read it."""

    def __init__(self, folder: Path, stored: Metadata) -> None:
        super().__init__(folder)
        self._checked = stored

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._checked


class _Writer(FileSystemWriter):
    """Torch's, without random marks and the temporary path: the same input gives the same bytes."""

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta()


class _Planner(DefaultLoadPlanner):
    """Torch's, but objects are loaded without running code that is in them."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        with torch.serialization.safe_globals(plain_data()):
            self.original_state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


# -- helpers -----------------------------------------------------------------------------------------------


def _places(folder: Path, stored: Metadata) -> dict[TreePath, str]:
    """By its place in what was saved, the flat name under which something is stored."""
    planner = stored.planner_data or {}
    places = {planner.get(name, (name,)): name for name in stored.state_dict_metadata}
    if len(places) < len(stored.state_dict_metadata):
        raise CheckpointError(f"{folder / DISTRIBUTED} is damaged: two entries have the same place")
    return places


def _put(root: dict[Any, Any], place: TreePath, value: Any) -> None:
    """Set a value, making dicts for names and lists for numbers on the way."""
    node: Any = root
    for part, following in zip(place, (*place[1:], None), strict=True):
        fresh: Any = value if following is None else [] if isinstance(following, int) else {}
        if isinstance(node, list):
            if not isinstance(part, int) or not 0 <= part < 1 << 20:
                raise CheckpointError(f"{'.'.join(map(str, place))}: {part!r} is no place in a list")
            node.extend([None] * (part + 1 - len(node)))
            if node[part] is None:
                node[part] = fresh
            node = node[part]
        elif isinstance(node, dict):
            node = node.setdefault(part, fresh)
        else:
            raise CheckpointError(f"{'.'.join(map(str, place))} lies below something that is no container")


def _info(name: str, value: torch.Tensor, folder: Path) -> TensorInfo:
    dtype = name_of(value.dtype)
    if dtype is None:
        raise CheckpointError(f"{folder}: tensor {name!r} has the dtype {value.dtype}, unknown to netgrow")
    return TensorInfo(name, tuple(value.shape), dtype)


def _made(value: Any, written: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, WrittenTensor):
        return written[value.name]
    return value.make() if isinstance(value, DeferredTensor) else value


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a safetensors file, on the disk until they are touched."""
    with SafetensorsCheckpoint(path, prefix="") as spool:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        values = {}
        for info in spool.tensors.values():
            region = spool.region(info.name)
            assert region is not None
            dtype, shape = torch_form(info.dtype, info.shape)
            if region.size:
                flat = torch.frombuffer(data, dtype=torch.uint8, count=region.size, offset=region.start)
                values[info.name] = flat.view(dtype).reshape(shape)
            else:
                values[info.name] = torch.empty(shape, dtype=dtype)
        yield values


@contextlib.contextmanager
def _alone(function: Any) -> Iterator[dict[str, Any]]:
    """How to tell torch that this is the only process, which older ones find out and warn of."""
    known = "no_dist" in inspect.signature(function).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield {"no_dist": True} if known else {}
        except CheckpointException as wrapped:
            # It is made of whatever was raised in each process, interrupts and full disks too.
            raise next(iter(wrapped.failures.values()))[0] from None
