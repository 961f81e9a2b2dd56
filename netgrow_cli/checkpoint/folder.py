"""Folders of the Hugging Face kind: weights in one file or in shards with an index, safetensors or torch.

To the rest of netgrow a folder is one checkpoint. Opening reads the shards' headers; files are opened when a tensor in
them is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgrow_cli.checkpoint import sharding
from netgrow_cli.checkpoint.detect import detect
from netgrow_cli.checkpoint.dtypes import nbytes
from netgrow_cli.checkpoint.folder_index import INDEX, Weights, index_text
from netgrow_cli.checkpoint.names import choose_prefix
from netgrow_cli.checkpoint.safetensors_file import SafetensorsCheckpoint, SafetensorsWriter, read_header
from netgrow_cli.checkpoint.ties import equal_heads
from netgrow_cli.checkpoint.types import Checkpoint, Region, TensorInfo, Writer
from netgrow_cli.errors import CheckpointError

if TYPE_CHECKING:
    import torch

OWN_METADATA = ("netgrow.spec", "netgrow.record")
"""What netgrow puts into the metadata of a single file; in a folder it lies beside the weights."""

# Beside the files of the process itself; a shard has a descriptor while it is read, and one while it is written.
_FEW_FILES = 128


class FolderCheckpoint(Checkpoint):
    """An opened folder. Tensors are in the order of the shards' names and, within one, of their bytes.

    weights: which files it has. shard_size: how many bytes a shard of a new folder has at most; None keeps each tensor
    in the shard that it is in.
    """

    key = None

    def __init__(self, weights: Weights, *, prefix: str | None = None, shard_size: int | None = None) -> None:
        self.path = weights.folder
        self.weights = weights
        self.own_files = weights.own_files
        self.format = weights.format
        self._shard_size = shard_size
        self._shards: dict[str, _Shard] = {}
        for file in weights.files:
            self._shards[file] = _open_shard(weights.folder / file, self.format)
        self._file_of = _file_of(weights, self._shards)
        self.prefix = choose_prefix(list(self._file_of), prefix, str(self.path))
        cut = len(self.prefix)
        found = [info for shard in self._shards.values() for info in shard.infos]
        self.tensors: dict[str, TensorInfo] = {info.name[cut:]: _without(info, cut) for info in found}
        self.tensors |= {
            name: dataclasses.replace(self.tensors[name], tied_to=first) for name, first in equal_heads(self).items()
        }
        self.metadata = {key: text for shard in self._shards.values() for key, text in (shard.metadata or {}).items()}

    def read(self, name: str) -> torch.Tensor:
        return self._shard(name).read(self.prefix + name)

    def read_bytes(self, name: str) -> bytes:
        return self._shard(name).read_bytes(self.prefix + name)

    def region(self, name: str) -> Region | None:
        return self._shard(name).region(self.prefix + name)

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
        """A writer of weights into a folder that is there. See `Checkpoint.writer`."""
        if replace:
            raise ValueError("a folder's weights have nothing beside the tensors to replace")
        self.require_same_names(tensors)
        # Names of a safetensors file never tie: what is there twice is written twice.
        ties = self.format == "torch"
        stored = [_renamed(info if ties else dataclasses.replace(info, tied_to=None), self.prefix) for info in tensors]
        shards = self._new_shards(stored)

        def make(file: str) -> Writer:
            return self._shard_writer(path, file, shards[file], metadata)

        text = self._new_index(shards, stored, _parameters(tensors))
        return FolderWriter(path, shards, make, prefix=self.prefix, index=(self.weights.base + INDEX, text))

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()

    def file_of(self, name: str) -> str:
        """The shard that a tensor is in."""
        return self._file_of[self.prefix + name]

    def _shard(self, name: str) -> Checkpoint:
        return self._shards[self.file_of(name)].opened(len(self._shards))

    def _new_shards(self, stored: Sequence[TensorInfo]) -> dict[str, list[TensorInfo]]:
        if self._shard_size is not None:
            return sharding.split(stored, self._shard_size, self.weights.base)
        shards: dict[str, list[TensorInfo]] = {file: [] for file in self._shards}
        for info in stored:
            shards[self._file_of[info.name]].append(info)
        return shards

    def _shard_writer(
        self, folder: Path, file: str, infos: Sequence[TensorInfo], metadata: Mapping[str, str] | None
    ) -> Writer:
        kept = self._shard_size is None
        if self.format == "torch":
            if kept:
                return self._shards[file].opened(len(self._shards)).writer(folder / file, infos)
            from netgrow_cli.checkpoint import create_writer

            return create_writer("torch", folder / file, infos)
        own = self._shards[file].metadata if kept else self._common_metadata()
        merged = {key: text for key, text in (own or {}).items() if key not in OWN_METADATA} | dict(metadata or {})
        return SafetensorsWriter(folder / file, infos, metadata=merged if merged or own is not None else None)

    def _common_metadata(self) -> Mapping[str, str] | None:
        return self.metadata if any(shard.metadata is not None for shard in self._shards.values()) else None

    def _new_index(
        self, shards: Mapping[str, Sequence[TensorInfo]], stored: Sequence[TensorInfo], parameters: int
    ) -> str | None:
        """The index of the new shards; None where one file needs none."""
        had_one = self.weights.shard_of is not None
        if len(shards) == 1 and not (had_one and self._shard_size is None):
            return None
        metadata = dict(self.weights.index.get("metadata") or {})
        metadata["total_size"] = sum(nbytes(info.dtype, info.shape) for info in stored if info.tied_to is None)
        count = metadata.get("total_parameters")
        if isinstance(count, int):
            metadata["total_parameters"] = count + parameters - _parameters(self.tensors.values())
        shard_of = {info.name: file for file, infos in shards.items() for info in infos}
        return index_text(self.weights.index, shard_of, metadata)


class FolderWriter(Writer):
    """Writes shards, each when its first tensor comes, and the index when all of them are whole.

    shards: by file, the tensors as stored. make: the writer of one of the files. prefix: before the names that come.
    index: its name and text.
    """

    def __init__(
        self,
        folder: Path,
        shards: Mapping[str, Sequence[TensorInfo]],
        make: Callable[[str], Writer],
        *,
        prefix: str = "",
        index: tuple[str, str | None],
    ) -> None:
        self._folder = folder
        self._make = make
        self._prefix = prefix
        self._index = index
        self._file_of = {info.name: file for file, infos in shards.items() for info in infos}
        if len(self._file_of) < sum(map(len, shards.values())):
            raise ValueError(f"two tensors for {folder} have the same name")
        self._missing = {file: {info.name for info in infos} for file, infos in shards.items()}
        self._tied = {info.name for infos in shards.values() for info in infos if info.tied_to is not None}
        self._writers: dict[str, Writer] = {}
        self._filled_elsewhere: set[str] = set()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        file = self._take(name)
        self._writer(file).write(self._prefix + name, tensor)
        if not self._missing[file] and file not in self._filled_elsewhere:
            # The shard is whole: its descriptor and its stand-ins are no longer needed.
            self._writers.pop(file).finish()
            del self._missing[file]

    def region(self, name: str) -> Region | None:
        file = self._file_of.get(self._prefix + name)
        if file is None or self._prefix + name not in self._missing.get(file, ()):
            raise ValueError(f"tensor {name!r} was not announced, or is written twice")
        region = self._writer(file).region(self._prefix + name)
        if region is not None:
            self._take(name)
            self._filled_elsewhere.add(file)
        return region

    def finish(self) -> None:
        if lost := [name for names in self._missing.values() for name in names - self._tied]:
            raise ValueError(f"tensors announced and never written: {', '.join(sorted(lost))}")
        for file in list(self._missing):
            self._writer(file).finish()  # (a shard without tensors is a file all the same)
            del self._missing[file]
        name, text = self._index
        if text is not None:
            (self._folder / name).write_text(text, encoding="utf-8")

    def _take(self, name: str) -> str:
        stored = self._prefix + name
        file = self._file_of.get(stored)
        if file is None or stored not in self._missing.get(file, ()):
            raise ValueError(f"tensor {name!r} was not announced, or is written twice")
        self._missing[file].remove(stored)
        return file

    def _writer(self, file: str) -> Writer:
        if file not in self._writers:
            _allow_files(2 * len(self._missing))
            (self._folder / file).parent.mkdir(parents=True, exist_ok=True)
            self._writers[file] = self._make(file)
        return self._writers[file]


def new_folder(
    folder: Path, shards: Mapping[str, Sequence[TensorInfo]], base: str, metadata: Mapping[str, str]
) -> Writer:
    """A writer of safetensors in shards, and of their index where they are several."""

    def make(file: str) -> Writer:
        return SafetensorsWriter(folder / file, shards[file], metadata=metadata)

    shard_of = {info.name: file for file, infos in shards.items() for info in infos}
    size = sum(nbytes(info.dtype, info.shape) for infos in shards.values() for info in infos)
    text = index_text({}, shard_of, {"total_size": size}) if len(shards) > 1 else None
    return FolderWriter(folder, shards, make, index=(base + INDEX, text))


# -- shards ----------------------------------------------------------------------------------------------


class _Shard:
    """One file: what is in it, and the checkpoint once it is needed."""

    def __init__(
        self, path: Path, infos: Sequence[TensorInfo], metadata: Mapping[str, str] | None, opened: Checkpoint | None
    ) -> None:
        self.path = path
        self.infos = infos
        self.metadata = metadata
        self._opened = opened
        # Tensors are read from several threads; each file is opened once, and stays open while regions of it are used.
        self._lock = threading.Lock()

    def opened(self, of: int) -> Checkpoint:
        """The file, open from now on. of: how many there are."""
        with self._lock:
            if self._opened is None:
                _allow_files(2 * of)
                self._opened = SafetensorsCheckpoint(self.path, prefix="")
                if list(self._opened.tensors.values()) != list(self.infos):
                    raise CheckpointError(f"{self.path} changed while it was read; something else is writing it")
            return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


def _open_shard(path: Path, format: str) -> _Shard:
    kind = detect(path)
    if (kind == "safetensors") != (format == "safetensors"):
        raise CheckpointError(f"{path} is a {'safetensors' if kind == 'safetensors' else 'torch'} file, by its content")
    if format == "safetensors":
        header = read_header(path)
        return _Shard(path, [entry.info for entry in header.entries], header.metadata, None)
    from netgrow_cli.checkpoint.torch_file import TorchCheckpoint

    opened = TorchCheckpoint(path, kind, key="", prefix="")
    return _Shard(path, list(opened.tensors.values()), None, opened)


def _file_of(weights: Weights, shards: Mapping[str, _Shard]) -> dict[str, str]:
    """By stored name, the file that a tensor is in; the index must say the same.

    A tensor that the index does not list is loaded by transformers all the same, and is taken here too.
    """
    found: dict[str, str] = {}
    for file, shard in shards.items():
        for info in shard.infos:
            if info.name in found:
                raise CheckpointError(
                    f"{weights.folder}: tensor {info.name!r} is in two shards, {found[info.name]} and {file}"
                )
            found[info.name] = file
    wrong = [name for name, file in (weights.shard_of or {}).items() if found.get(name) != file]
    if wrong:
        name = wrong[0]
        there = f"it is in {found[name]}" if name in found else "it is in none"
        more = f" ({len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{weights.folder}: {weights.base}{INDEX} says that tensor {name!r} is in "
            f"{(weights.shard_of or {})[name]}; {there}{more}"
        )
    return found


def _without(info: TensorInfo, cut: int) -> TensorInfo:
    tied = info.tied_to[cut:] if info.tied_to is not None else None
    return dataclasses.replace(info, name=info.name[cut:], tied_to=tied)


def _renamed(info: TensorInfo, prefix: str) -> TensorInfo:
    tied = prefix + info.tied_to if info.tied_to is not None else None
    return dataclasses.replace(info, name=prefix + info.name, tied_to=tied)


def _parameters(infos: Iterable[TensorInfo]) -> int:
    return sum(math.prod(info.shape) for info in infos if info.tied_to is None)


def _allow_files(count: int) -> None:
    """Let the process have so many more files open, where the system's limit for users is lower than it must be."""
    if count <= _FEW_FILES:
        return
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * count + _FEW_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
