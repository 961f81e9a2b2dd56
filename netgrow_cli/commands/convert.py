"""`netgrow convert CKPT -o OUT`: between torch and safetensors, files and folders."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from netgrow_cli.checkpoint import Checkpoint, checkpoint_path, create_writer, open_checkpoint, staged_outputs
from netgrow_cli.checkpoint.dtypes import has_torch_form
from netgrow_cli.commands.conversion import (
    COMPANIONS,
    FORMAT_METADATA,
    TIED,
    Place,
    companion,
    copy_tensors,
    left_out,
    tied_metadata,
    to_distributed,
    to_folder,
)
from netgrow_cli.commands.declare import argument, given
from netgrow_cli.commands.streams import STANDARD, destination, one_file, readable, send
from netgrow_cli.errors import CheckpointError, UsageError

_OTHER = {"torch": "safetensors", "safetensors": "torch"}
_FORMATS = {
    ".safetensors": "safetensors",
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), "torch"),
    ".dcp": "distributed",
}
_TO_FOLDER = {"folder": to_folder, "distributed": to_distributed}


def convert(
    source: Annotated[str, argument("CKPT")],
    output: Annotated[str, given(("-o", "--output"), "The new file; its ending says the format.")],
    force: Annotated[bool, given("--force", "Replace an output that exists.")] = False,
    as_json: Annotated[bool, given("--json", "One JSON object on standard output.")] = False,
    *,
    key: Annotated[str | None, given("--key", "Where the state dict lies in the checkpoint.")] = None,
    shard_size: Annotated[
        str | None, given("--shard-size", "Write a folder with shards: 5GB, 500MiB, bytes.", metavar="SIZE")
    ] = None,
) -> int:
    """Convert between .pt and .safetensors, files and folders, and torch.distributed.checkpoint (.dcp)."""
    from netgrow_cli.checkpoint.sharding import parse_size

    size = parse_size(shard_size) if isinstance(shard_size, str) else shard_size
    to_standard = output == STANDARD
    if to_standard and as_json:
        raise UsageError("--json and the checkpoint both want standard output; give -o FILE")
    if to_standard:
        one_file(source)
    with readable(source) as stated, destination(output, to_standard) as target:
        assert target is not None
        path = checkpoint_path(stated)
        # Names stay as they are, wrappers included: a conversion changes the container only.
        with open_checkpoint(path, key=key, prefix="") as checkpoint:
            wanted = _OTHER[checkpoint.format] if to_standard else _wanted(checkpoint, target, size)
            # Standard output holds one file: what would lie beside a torch file is left out, and said to be.
            kept = {} if to_standard and wanted == "torch" else _kept(checkpoint, path)
            place = Place(path, target, force, kept)
            if wanted in _TO_FOLDER:
                dropped = _TO_FOLDER[wanted](checkpoint, place, size)
            else:
                dropped = _to_file(checkpoint, place, wanted)
            count = len(checkpoint.tensors)
        if to_standard:
            send(target)
    if as_json:
        result = {"command": "convert", "input": source, "output": output, "tensors": count, "dropped": dropped}
        print(json.dumps(result, ensure_ascii=False))
    elif not to_standard:
        print(output)
    if dropped:
        print(f"warning: {output} does not hold all of {source}; left out: {', '.join(dropped)}", file=sys.stderr)
    return 0


def _kept(checkpoint: Checkpoint, path: Path) -> dict[str, str]:
    """The spec and the record that go with a checkpoint, inside it or beside it, by their names inside."""
    inside = {name: checkpoint.metadata[name] for name in COMPANIONS if name in checkpoint.metadata}
    if inside or (checkpoint.format == "safetensors" and checkpoint.own_files is None):
        return inside
    beside = {name: companion(path, name, folder=checkpoint.own_files is not None) for name in COMPANIONS}
    return {name: place.read_text(encoding="utf-8") for name, place in beside.items() if place.is_file()}


def _wanted(checkpoint: Checkpoint, target: Path, shard_size: int | None) -> str:
    """The format that an output's name asks for. Raises UsageError."""
    folder = checkpoint.own_files is not None
    wanted = _FORMATS.get(target.suffix)
    if wanted is None and (folder or shard_size is not None):
        wanted = "folder"
    if wanted is None:
        raise UsageError(
            f"the ending of {target} names no format; expected one of {', '.join(_FORMATS)}, or --shard-size SIZE for "
            "a folder of safetensors"
        )
    if shard_size is not None and wanted != "folder":
        raise UsageError(f"--shard-size cuts the weights of a folder, and {target} is to be none")
    whole = not folder and wanted == checkpoint.format
    if whole or (wanted == "distributed" == checkpoint.format):
        other = ".pt" if wanted == "safetensors" else ".safetensors"
        raise UsageError(f"{checkpoint.path} is a {wanted} file already; give an output that ends in {other}")
    if wanted == "folder" and folder and checkpoint.format == "safetensors" and shard_size is None:
        raise UsageError(f"{checkpoint.path} holds safetensors already; --shard-size SIZE cuts them anew")
    return wanted


def _to_file(checkpoint: Checkpoint, place: Place, wanted: str) -> list[str]:
    beside = {companion(place.target, name): text for name, text in place.kept.items() if wanted == "torch"}
    with staged_outputs([place.target, *beside], force=place.force, inputs=[place.source]) as staged:
        dropped = _TO[wanted](checkpoint, staged.paths[0], place.kept)
        for path, text in zip(staged.paths[1:], beside.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        staged.commit()
    return dropped


def _to_safetensors(checkpoint: Checkpoint, path: Path, kept: Mapping[str, str]) -> list[str]:
    infos = list(checkpoint.tensors.values())
    copy_tensors(checkpoint, create_writer("safetensors", path, infos, {**tied_metadata(checkpoint), **kept}), infos)
    return left_out(checkpoint)


def _to_torch(checkpoint: Checkpoint, path: Path, kept: Mapping[str, str]) -> list[str]:
    for info in checkpoint.tensors.values():
        if not has_torch_form(info.dtype, info.shape):
            raise CheckpointError(f"tensor {info.name!r} is {info.dtype} {list(info.shape)}, which torch cannot hold")
    tied = _verified_ties(checkpoint)
    infos = [dataclasses.replace(info, tied_to=tied.get(info.name)) for info in checkpoint.tensors.values()]
    infos.sort(key=lambda info: info.tied_to is not None)  # whom a name is tied to comes before it
    copy_tensors(checkpoint, create_writer("torch", path, infos), infos)
    return left_out(checkpoint) + [
        f"metadata {name}"
        for name, value in checkpoint.metadata.items()
        if name != TIED and name not in kept and FORMAT_METADATA.get(name) != value
    ]


_TO = {"safetensors": _to_safetensors, "torch": _to_torch}


def _verified_ties(checkpoint: Checkpoint) -> dict[str, str]:
    """The recorded ties that still hold: another tool may have changed one of the copies."""
    ties: dict[str, str] = {}
    for name, first in _recorded_ties(checkpoint.metadata).items():
        a, b = checkpoint.tensors.get(name), checkpoint.tensors.get(first)
        if a is None or b is None:
            continue
        if (a.shape, a.dtype) == (b.shape, b.dtype) and checkpoint.read_bytes(name) == checkpoint.read_bytes(first):
            ties[name] = first
        else:
            print(f"warning: {name} was tied to {first} and differs from it now; kept apart", file=sys.stderr)
    return ties


def _recorded_ties(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        recorded = json.loads(metadata.get(TIED, "{}"))
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict) or not all(isinstance(first, str) for first in recorded.values()):
        print(f"warning: the metadata {TIED} is not readable; no ties are restored", file=sys.stderr)
        return {}
    return {name: first for name, first in recorded.items() if first not in recorded}
