"""`netgrow convert CKPT -o OUT`: between torch and safetensors files."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from netgrow_cli.checkpoint import Checkpoint, TensorInfo, create_writer, open_checkpoint, staged_outputs
from netgrow_cli.checkpoint.dtypes import has_torch_form
from netgrow_cli.commands.declare import argument, given
from netgrow_cli.commands.streams import STANDARD, destination, readable, send
from netgrow_cli.errors import CheckpointError, UsageError
from netgrow_cli.surgery.record import METADATA_RECORD
from netgrow_cli.topology.discover import METADATA_SPEC

_OTHER = {"torch": "safetensors", "safetensors": "torch"}
_FORMATS = {".safetensors": "safetensors", **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), "torch")}
# Safetensors cannot share memory between names; which names did is kept here: {later name: first name}.
_TIED = "netgrow.tied"
# What goes with a checkpoint: in the metadata of a safetensors file, beside a torch file.
_COMPANIONS = {METADATA_SPEC: ".netgrow.yaml", METADATA_RECORD: ".netgrow.json"}
# What loaders of the Hugging Face kind insist on.
_FORMAT_METADATA = {"format": "pt"}


def convert(
    source: Annotated[str, argument("CKPT")],
    output: Annotated[str, given(("-o", "--output"), "The new file; its ending says the format.")],
    force: Annotated[bool, given("--force", "Replace an output that exists.")] = False,
    as_json: Annotated[bool, given("--json", "One JSON object on standard output.")] = False,
    *,
    key: Annotated[str | None, given("--key", "Where the state dict lies in the checkpoint.")] = None,
) -> int:
    """Convert between .pt and .safetensors."""
    to_standard = output == STANDARD
    if to_standard and as_json:
        raise UsageError("--json and the checkpoint both want standard output; give -o FILE")
    with readable(source) as path, destination(output, to_standard) as target:
        assert target is not None
        # Names stay as they are, wrappers included: a conversion changes the container only.
        with open_checkpoint(path, key=key, prefix="") as checkpoint:
            wanted = _OTHER[checkpoint.format] if to_standard else _format_of(target)
            if checkpoint.format == wanted:
                other = ".pt" if wanted == "safetensors" else ".safetensors"
                raise UsageError(f"{path} is a {wanted} file already; give an output that ends in {other}")
            # Standard output holds one file: what would lie beside a torch file is left out, and said to be.
            kept = {} if to_standard and wanted == "torch" else _kept(checkpoint, path)
            beside = {_beside_path(target, name): text for name, text in kept.items() if wanted == "torch"}
            with staged_outputs([target, *beside], force=force, inputs=[path]) as staged:
                dropped = _TO[wanted](checkpoint, staged.paths[0], kept)
                for place, text in zip(staged.paths[1:], beside.values(), strict=True):
                    place.write_text(text, encoding="utf-8")
                count = len(checkpoint.tensors)
                staged.commit()
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
    if checkpoint.format == "safetensors":
        return {name: checkpoint.metadata[name] for name in _COMPANIONS if name in checkpoint.metadata}
    beside = {name: _beside_path(path, name) for name in _COMPANIONS}
    return {name: place.read_text(encoding="utf-8") for name, place in beside.items() if place.is_file()}


def _beside_path(path: Path, name: str) -> Path:
    return path.with_name(path.name + _COMPANIONS[name])


def _format_of(target: Path) -> str:
    if target.suffix not in _FORMATS:
        raise UsageError(f"the ending of {target} names no format; expected one of {', '.join(_FORMATS)}")
    return _FORMATS[target.suffix]


def _to_safetensors(checkpoint: Checkpoint, path: Path, kept: Mapping[str, str]) -> list[str]:
    tied = {name: info.tied_to for name, info in checkpoint.tensors.items() if info.tied_to is not None}
    metadata = {**_FORMAT_METADATA, **kept}
    if tied:
        metadata[_TIED] = json.dumps(tied, ensure_ascii=False, sort_keys=True)
        for name, first in tied.items():
            print(f"note: {name} is tied to {first}; safetensors holds it as a copy", file=sys.stderr)
    _copy(checkpoint, path, "safetensors", list(checkpoint.tensors.values()), metadata)
    return list(_beside(checkpoint.tree(), checkpoint.key or "", checkpoint.tensors))


def _to_torch(checkpoint: Checkpoint, path: Path, kept: Mapping[str, str]) -> list[str]:
    for info in checkpoint.tensors.values():
        if not has_torch_form(info.dtype, info.shape):
            raise CheckpointError(f"tensor {info.name!r} is {info.dtype} {list(info.shape)}, which torch cannot hold")
    tied = _verified_ties(checkpoint)
    infos = [dataclasses.replace(info, tied_to=tied.get(info.name)) for info in checkpoint.tensors.values()]
    infos.sort(key=lambda info: info.tied_to is not None)  # whom a name is tied to comes before it
    _copy(checkpoint, path, "torch", infos, None)
    return [
        f"metadata {name}"
        for name, value in checkpoint.metadata.items()
        if name != _TIED and name not in kept and _FORMAT_METADATA.get(name) != value
    ]


_TO = {"safetensors": _to_safetensors, "torch": _to_torch}


def _copy(
    checkpoint: Checkpoint, path: Path, format: str, infos: list[TensorInfo], metadata: Mapping[str, str] | None
) -> None:
    writer = create_writer(format, path, infos, metadata)
    for info in infos:
        writer.write(info.name, checkpoint.read(info.name))
    writer.finish()


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
        recorded = json.loads(metadata.get(_TIED, "{}"))
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict) or not all(isinstance(first, str) for first in recorded.values()):
        print(f"warning: the metadata {_TIED} is not readable; no ties are restored", file=sys.stderr)
        return {}
    return {name: first for name, first in recorded.items() if first not in recorded}


def _beside(node: Any, key: str, names: Collection[str], place: str = "") -> Iterator[str]:
    """Dotted places of all that is in the tree beside the model's tensors, `names` at `key`."""
    if place == key:
        yield from (f"{place}.{name}" if place else str(name) for name in node if name not in names)
        return
    for name, value in node.items():
        here = f"{place}.{name}" if place else str(name)
        if here == key or key.startswith(here + "."):
            yield from _beside(value, key, names, here)
        else:
            yield here
