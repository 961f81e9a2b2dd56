"""Checkpoint files: what is in one, and how to write a new one.

    with open_checkpoint(Path("model.pt")) as checkpoint, staged_outputs([out], force=False) as staged:
        writer = checkpoint.writer(staged.paths[0], list(checkpoint.tensors.values()))
        for name in checkpoint.tensors:
            writer.write(name, checkpoint.read(name))
        writer.finish()
        staged.commit()

Importing this package, opening a safetensors file and reading its bytes import neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from netgrow_cli.checkpoint.detect import detect
from netgrow_cli.checkpoint.safetensors_file import SafetensorsCheckpoint, SafetensorsWriter
from netgrow_cli.checkpoint.staging import Staging, check_outputs, staged_outputs
from netgrow_cli.checkpoint.types import Checkpoint, TensorInfo, Writer
from netgrow_cli.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "Staging",
    "TensorInfo",
    "Writer",
    "check_outputs",
    "create_writer",
    "open_checkpoint",
    "staged_outputs",
]


def open_checkpoint(path: Path, *, key: str | None = None, prefix: str | None = None) -> Checkpoint:
    """Open a checkpoint of any format, found by its content; CheckpointError says why it is none.

    key: where in a torch file the state dict lies ("model", "a.b", "" for the root); found where possible.
    prefix: what to take off every name; wrappers (`module.`, `_orig_mod.`) are found.
    """
    kind = detect(path)
    if kind == "safetensors":
        if key:
            raise CheckpointError(f"{path} is a safetensors file and has no keys; leave out {key!r}")
        return SafetensorsCheckpoint(path, prefix=prefix)
    from netgrow_cli.checkpoint.torch_file import TorchCheckpoint

    return TorchCheckpoint(path, kind, key=key, prefix=prefix)


def create_writer(
    format: str, path: Path, tensors: Sequence[TensorInfo], metadata: Mapping[str, str] | None = None
) -> Writer:
    """A writer of a fresh file that holds a plain state dict.

    format: "safetensors" or "torch".
    metadata: text to text, for safetensors; a torch file has no place for it.
    """
    if format == "safetensors":
        return SafetensorsWriter(path, tensors, metadata=metadata)
    if format != "torch":
        raise ValueError(f"unknown format {format!r}; expected 'safetensors' or 'torch'")
    from collections import OrderedDict

    from netgrow_cli.checkpoint.torch_writer import TorchWriter

    names = [info.name for info in tensors]
    return TorchWriter(path, tensors, lambda values, _: OrderedDict((name, values[name]) for name in names))
