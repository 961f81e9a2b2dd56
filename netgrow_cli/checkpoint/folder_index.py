"""Which weights a folder of the Hugging Face kind has: one file, or an index with shards. Reads no weights.

The same file is taken as by transformers and diffusers: safetensors before torch, a single file before an index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from netgrow_cli.errors import CheckpointError
from netgrow_cli.frozen import frozen

BASES = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""The single files, the first found taken; an index is called `<single file>.index.json`."""

INDEX = ".index.json"
_MAX_INDEX = 1 << 28
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<ending>\.[a-z]+)")


@frozen
class Weights:
    """base: the name of the single file, from which those of the shards and of the index are made.
    files: the shards, relative to the folder, sorted by name. shard_of: by stored tensor name, the shard that the index
    names; None without an index. index: what else the index says.
    """

    folder: Path
    base: str
    files: tuple[str, ...]
    shard_of: Mapping[str, str] | None
    index: Mapping[str, Any]

    @property
    def format(self) -> str:
        """The format of its files: "safetensors" or "torch"."""
        return "safetensors" if self.base.endswith(".safetensors") else "torch"

    @property
    def own_files(self) -> frozenset[str]:
        """Names of all that belongs to these weights."""
        return frozenset([*self.files, *([self.base + INDEX] if self.shard_of is not None else [])])


def find_weights(folder: Path) -> Weights | None:
    """The weights that loaders take; None where the folder has none. CheckpointError for an index that is not valid."""
    for base in BASES:
        if (folder / base).is_file():
            return Weights(folder, base, (base,), None, {})
        if (folder / (base + INDEX)).is_file():
            return _by_index(folder, base)
    return None


def checkpoint_path(path: Path) -> Path:
    """What is meant by a path: the folder, where an index in it was named.

    Raises CheckpointError for one of several shards, and for an index that is not the one the folder is loaded by.
    """
    if path.is_dir():
        # `.` and `..` have no name that an output could be called by.
        return path if path.name not in ("", "..") else path.resolve()
    if path.name.endswith(INDEX) and path.is_file():
        base = path.name.removesuffix(INDEX)
        if base not in BASES:
            raise CheckpointError(f"{path}: an index is called {', '.join(name + INDEX for name in BASES[:2])}")
        taken = next(name for name in BASES if any((path.parent / (name + end)).is_file() for end in ("", INDEX)))
        if taken != base or (path.parent / base).is_file():
            other = taken if (path.parent / taken).is_file() else taken + INDEX
            raise CheckpointError(
                f"{path}: {other} lies beside it, and loaders take that one; give the folder if that is meant, else "
                "move it away"
            )
        return checkpoint_path(path.parent)
    index = _index_of_shard(path)
    if index is not None:
        raise CheckpointError(f"{path} is one shard of {index.name}; give the folder: {path.parent}")
    return path


def _index_of_shard(path: Path) -> Path | None:
    """The index beside a file that is named as a shard, if it lists it."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return None
    index = path.with_name(f"{match['stem']}{match['ending']}{INDEX}")
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return index if path.name in listed else None


def shard_name(base: str, number: int, count: int) -> str:
    """The name of a shard, counted from 0; the only one is the single file."""
    if count == 1:
        return base
    stem, _, ending = base.rpartition(".")
    return f"{stem}-{number + 1:05d}-of-{count:05d}.{ending}"


def index_text(index: Mapping[str, Any], shard_of: Mapping[str, str], metadata: Mapping[str, Any]) -> str:
    """A new index, laid out as transformers does. index: what it says beside."""
    root = {**index, "metadata": dict(metadata), "weight_map": dict(shard_of)}
    return json.dumps(root, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


# -- reading an index ------------------------------------------------------------------------------------


def _by_index(folder: Path, base: str) -> Weights:
    path = folder / (base + INDEX)
    root = _parsed(path)
    if not isinstance(root, dict):
        _invalid(path, f"it holds {_kind(root)}; expected an object with a weight_map")
    if "weight_map" not in root:
        _invalid(path, "it has no weight_map")
    shard_of = root["weight_map"]
    if not isinstance(shard_of, dict):
        _invalid(path, f"weight_map is {_kind(shard_of)}; expected an object of tensor names to file names")
    if not shard_of:
        _invalid(path, "weight_map is empty")
    seen: set[str] = set()
    for name, file in shard_of.items():
        if not isinstance(file, str):
            _invalid(path, f"weight_map: {name!r} is {_kind(file)}; expected a file name")
        if file not in seen:  # (there are many tensors to a file)
            _check_inside(path, name, file)
            seen.add(file)
    metadata = root.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        _invalid(path, f"metadata is {_kind(metadata)}; expected an object")
    files = tuple(sorted(set(shard_of.values())))
    if missing := [file for file in files if not (folder / file).is_file()]:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CheckpointError(f"{folder}: {len(missing)} of {len(files)} shards of {path.name} are missing: {shown}")
    return Weights(folder, base, files, shard_of, root)


def _parsed(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_INDEX:
            _invalid(path, f"it is larger than {_MAX_INDEX >> 20} MiB")
        text = path.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=lambda pairs: _object(path, pairs))
    except UnicodeDecodeError as error:
        _invalid(path, f"it is not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        _invalid(path, f"it is not JSON: {error.msg} (line {error.lineno})")
    except (RecursionError, ValueError):
        _invalid(path, "it is not JSON")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        _invalid(path, f"it has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _check_inside(path: Path, name: str, file: str) -> None:
    """A name of a shard must stay in the folder, on any system."""
    parts = PurePosixPath(file).parts
    outside = not parts or file.startswith("/") or ".." in parts or any(bad in file for bad in ("\\", "\0", ":"))
    if outside or any(ord(letter) < 32 for letter in file):
        _invalid(path, f"weight_map: {name!r} is in {file!r}, which is no file in this folder")


def _invalid(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path} is not a valid index: {what}")


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")
