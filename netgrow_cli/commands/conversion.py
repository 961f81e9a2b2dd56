"""What conversions have in common, and those into folders. See `convert`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from netgrow_cli.checkpoint import Checkpoint, TensorInfo, Writer
from netgrow_cli.checkpoint.beside import look_beside
from netgrow_cli.checkpoint.folder import FolderCheckpoint, new_folder
from netgrow_cli.checkpoint.folder_index import BASES, shard_name
from netgrow_cli.checkpoint.sharding import split
from netgrow_cli.checkpoint.staged_folder import staged_folder
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.record import METADATA_RECORD
from netgrow_cli.topology.discover import METADATA_SPEC

# Safetensors cannot share memory between names; which names did is kept here: {later name: first name}.
TIED = "netgrow.tied"
# What goes with a checkpoint: in the metadata of a safetensors file, beside a torch file, in a folder.
COMPANIONS = {METADATA_SPEC: "netgrow.yaml", METADATA_RECORD: "netgrow.json"}
# What loaders of the Hugging Face kind insist on.
FORMAT_METADATA = {"format": "pt"}

_SAFETENSORS = dict(zip(BASES, (BASES[0], BASES[0], BASES[2], BASES[2]), strict=True))
"""What the single file is called as safetensors."""


@frozen
class Place:
    """From where to where. kept: the spec and the record that go along."""

    source: Path
    target: Path
    force: bool
    kept: Mapping[str, str]


def companion(path: Path, name: str, *, folder: bool = False) -> Path:
    """Where the spec or the record lies that goes with a checkpoint."""
    return path / COMPANIONS[name] if folder else path.with_name(f"{path.name}.{COMPANIONS[name]}")


def copy_tensors(checkpoint: Checkpoint, writer: Writer, infos: Sequence[TensorInfo]) -> None:
    """All tensors, one at a time."""
    for info in infos:
        writer.write(info.name, checkpoint.read(info.name))
    writer.finish()


def tied_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of a safetensors file, with the ties that it cannot hold otherwise, which are said."""
    tied = {name: info.tied_to for name, info in checkpoint.tensors.items() if info.tied_to is not None}
    for name, first in tied.items():
        print(f"note: {name} is tied to {first}; safetensors holds it as a copy", file=sys.stderr)
    return {**FORMAT_METADATA, **({TIED: json.dumps(tied, ensure_ascii=False, sort_keys=True)} if tied else {})}


def to_folder(checkpoint: Checkpoint, place: Place, shard_size: int | None) -> list[str]:
    """Safetensors in shards with an index: as they were, or of the size asked for."""
    infos = [dataclasses.replace(info, tied_to=None) for info in checkpoint.tensors.values()]
    base = BASES[0]
    if isinstance(checkpoint, FolderCheckpoint):
        base = _SAFETENSORS[checkpoint.weights.base]
    shards = split(infos, shard_size, base) if shard_size is not None else _as_they_were(checkpoint, infos, base)
    with staged_folder(place.target, force=place.force, inputs=[place.source]) as staged:
        (folder,) = staged.paths
        copy_tensors(checkpoint, new_folder(folder, shards, base, tied_metadata(checkpoint)), infos)
        _others(checkpoint, place, folder)
        staged.commit()
    return left_out(checkpoint)


def to_distributed(checkpoint: Checkpoint, place: Place, shard_size: int | None) -> list[str]:
    """A folder of torch.distributed.checkpoint with the model's tensors at its root."""
    from netgrow_cli.checkpoint.distributed import DistributedWriter

    infos = [dataclasses.replace(info, tied_to=None) for info in checkpoint.tensors.values()]
    with staged_folder(place.target, force=place.force, inputs=[place.source]) as staged:
        (folder,) = staged.paths
        places = {info.name: (info.name,) for info in infos}
        writer = DistributedWriter(folder, infos, places, lambda: dict.fromkeys(places), {})
        copy_tensors(checkpoint, writer, infos)
        _others(checkpoint, place, folder)
        staged.commit()
    return left_out(checkpoint)


def _as_they_were(checkpoint: Checkpoint, infos: Sequence[TensorInfo], base: str) -> dict[str, list[TensorInfo]]:
    """Shards that hold what those of the source hold."""
    files = checkpoint.weights.files if isinstance(checkpoint, FolderCheckpoint) else ("",)
    names = {file: shard_name(base, number, len(files)) for number, file in enumerate(files)}
    shards: dict[str, list[TensorInfo]] = {name: [] for name in names.values()}
    for info in infos:
        file = checkpoint.file_of(info.name) if isinstance(checkpoint, FolderCheckpoint) else ""
        shards[names[file]].append(info)
    return shards


def _others(checkpoint: Checkpoint, place: Place, folder: Path) -> None:
    """The spec and the record, and what else was in a folder; no shape changes, so that training states still fit."""
    for name, text in place.kept.items():
        companion(folder, name, folder=True).write_text(text, encoding="utf-8")
    if checkpoint.own_files is not None:
        beside = look_beside(place.source, checkpoint.own_files)
        beside.copy(folder, optimizer=True)
        for note in beside.notes(unsure=False):
            print(f"note: {note}", file=sys.stderr)


def left_out(checkpoint: Checkpoint) -> list[str]:
    """Dotted places of all that is in a checkpoint beside the model's tensors."""
    tree = checkpoint.tree()
    return [] if tree is None else list(_beside(tree, checkpoint.key or "", checkpoint.tensors))


def _beside(node: Any, key: str, names: Collection[str], place: str = "") -> Iterator[str]:
    """Of all that is in the tree beside the model's tensors, `names` at `key`."""
    if place == key:
        yield from (f"{place}.{name}" if place else str(name) for name in node if name not in names)
        return
    for name, value in node.items():
        here = f"{place}.{name}" if place else str(name)
        if here == key or key.startswith(here + "."):
            yield from _beside(value, key, names, here)
        else:
            yield here
