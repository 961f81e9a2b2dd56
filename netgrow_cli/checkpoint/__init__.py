"""Checkpoint files and folders: what is in one, and how to write a new one.

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
from netgrow_cli.checkpoint.folder_index import checkpoint_path, find_weights
from netgrow_cli.checkpoint.safetensors_file import SafetensorsCheckpoint, SafetensorsWriter
from netgrow_cli.checkpoint.staging import Staging, check_outputs, staged_outputs
from netgrow_cli.checkpoint.types import Checkpoint, TensorInfo, Writer
from netgrow_cli.errors import CheckpointError, UsageError

__all__ = [
    "Checkpoint",
    "Staging",
    "TensorInfo",
    "Writer",
    "check_outputs",
    "checkpoint_path",
    "create_writer",
    "open_checkpoint",
    "staged_outputs",
]


def open_checkpoint(
    path: Path, *, key: str | None = None, prefix: str | None = None, shard_size: int | None = None
) -> Checkpoint:
    """Open a checkpoint of any format, found by its content; CheckpointError says why it is none.

    path: a file, a folder, or the index in a folder.
    key: where in a torch file the state dict lies ("model", "a.b", "" for the root); found where possible.
    prefix: what to take off every name; wrappers (`module.`, `_orig_mod.`) are found.
    shard_size: of a folder that is written from this one, how many bytes a shard has at most.
    """
    path = checkpoint_path(path)
    kind = detect(path)
    if shard_size is not None and kind != "folder":
        raise UsageError(f"--shard-size cuts the weights of a Hugging Face folder, and {path} is none")
    if kind == "folder":
        return _open_folder(path, key, prefix, shard_size)
    if kind == "distributed":
        from netgrow_cli.checkpoint.distributed import DistributedCheckpoint

        return DistributedCheckpoint(path, key=key, prefix=prefix)
    if kind == "safetensors":
        if key:
            raise CheckpointError(f"{path} is a safetensors file and has no keys; leave out {key!r}")
        return SafetensorsCheckpoint(path, prefix=prefix)
    from netgrow_cli.checkpoint.torch_file import TorchCheckpoint

    return TorchCheckpoint(path, kind, key=key, prefix=prefix)


def _open_folder(path: Path, key: str | None, prefix: str | None, shard_size: int | None) -> Checkpoint:
    from netgrow_cli.checkpoint.folder import FolderCheckpoint

    if key:
        raise CheckpointError(f"{path} is a folder and has no keys; leave out {key!r}")
    weights = find_weights(path)
    assert weights is not None, "detect found them"
    return FolderCheckpoint(weights, prefix=prefix, shard_size=shard_size)


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
