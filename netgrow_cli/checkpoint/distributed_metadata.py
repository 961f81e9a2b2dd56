"""The `.metadata` of a torch.distributed.checkpoint folder, read without running code that is in it.

torch reads this file with `pickle.load`, so that a folder from elsewhere may do anything. Here nothing but the
metadata's own classes is constructed. Imports torch.
"""

from __future__ import annotations

import pathlib
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

from netgrow_cli.checkpoint.detect import DISTRIBUTED
from netgrow_cli.errors import CheckpointError

_MOST_BYTES = 1 << 30

_CLASSES = (
    *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
    *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


def read_metadata(folder: Path) -> metadata.Metadata:
    """The metadata of a folder, its types checked. Raises CheckpointError."""
    path = folder / DISTRIBUTED
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path} is larger than {_MOST_BYTES >> 30} GiB, which no metadata is")
        with path.open("rb") as file:
            found = _Unpickler(file, path).load()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {str(error)[:200]})") from None
    _check(path, found)
    return found  # type: ignore[no-any-return]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == metadata.__name__ and name in _CLASSES and hasattr(metadata, name):
            return getattr(metadata, name)
        if (module, name) == (filesystem.__name__, "_StorageInfo"):
            return filesystem._StorageInfo
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return torch.serialization._get_layout  # of a name, from a table
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return getattr(pathlib, f"Pure{name.removeprefix('Pure')}")
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise CheckpointError(f"{self._path} contains code ({module}.{name}), refused; nothing of it was run")


def _check(path: Path, found: Any) -> None:
    """What torch's reader takes for granted, among it that no name leaves the folder."""
    if not isinstance(found, metadata.Metadata):
        raise CheckpointError(f"{path} holds a {type(found).__name__} and not the metadata of a checkpoint")
    state, storage, planner = found.state_dict_metadata, found.storage_data, found.planner_data
    if not isinstance(state, dict) or not isinstance(storage, dict) or not isinstance(planner, (dict, type(None))):
        raise CheckpointError(f"{path} is damaged: its tables are no tables")
    for name, entry in state.items():
        if not isinstance(name, str) or not isinstance(
            entry, (metadata.TensorStorageMetadata, metadata.BytesStorageMetadata)
        ):
            raise CheckpointError(f"{path} is damaged: {name!r} is a {type(entry).__name__}")
    for name, place in (planner or {}).items():
        if not isinstance(place, tuple) or not place or not all(isinstance(part, (str, int)) for part in place):
            raise CheckpointError(f"{path} is damaged: {name!r} is at {place!r}")
    for index, info in storage.items():
        if not isinstance(index, metadata.MetadataIndex) or not isinstance(info, filesystem._StorageInfo):
            raise CheckpointError(f"{path} is damaged: its storage holds a {type(info).__name__}")
        file = info.relative_path
        if not isinstance(file, str) or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise CheckpointError(f"{path}: {index.fqn!r} is in {file!r}, which is no file in this folder")
        if not (path.parent / file).is_file():
            raise CheckpointError(f"{path.parent}: {file} is missing, which holds {index.fqn!r}")
