"""Which format a file has, by its first bytes and never by its name, and what it is if it is none.

A folder is known by the names of its files.
"""

from __future__ import annotations

import stat
from pathlib import Path

from netgrow_cli.checkpoint.folder_index import find_weights
from netgrow_cli.checkpoint.safetensors_header import MAX_HEADER
from netgrow_cli.errors import CheckpointError

DISTRIBUTED = ".metadata"
"""What a folder of torch.distributed.checkpoint is known by."""

# The number with which torch's format before 1.6 starts, pickled.
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")

_WHAT_ELSE = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<!doctype", "a web page, not a checkpoint: the download went wrong"),
    (b"<html", "a web page, not a checkpoint: the download went wrong"),
    (b"gguf", "a GGUF file, which netgrow does not read"),
    (b"\x89hdf", "an HDF5 file, which netgrow does not read"),
    (b"\x93numpy", "a NumPy array, which netgrow does not read"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
)


def first_bytes(path: Path, count: int = 64) -> bytes:
    """The file's beginning; CheckpointError for what is no readable, non-empty file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{path} is a directory; give the checkpoint file in it{_files_in(path)}")
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file; a checkpoint is read at random places")
        with path.open("rb") as file:
            first = file.read(count)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if not first:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    return first


def detect(path: Path) -> str:
    """The kind of file: "safetensors", "zip" (torch) or "legacy" (torch before 1.6); "folder" for one with
    weights, "distributed" for one of torch.distributed.checkpoint.

    CheckpointError says what it is instead.
    """
    if path.is_dir():
        if find_weights(path) is not None:
            return "folder"
        if (path / DISTRIBUTED).is_file():
            return "distributed"
        if any(path.glob("*.distcp")):
            raise CheckpointError(f"{path} has *.distcp files and no {DISTRIBUTED}: it was not saved to the end")
    first = first_bytes(path)
    looks_like_header = first[8:9] in (b"{", b" ", b"\t", b"\n", b"\r")
    if looks_like_header and 0 < int.from_bytes(first[:8], "little") <= MAX_HEADER:
        return "safetensors"
    if first.startswith(b"PK\x03\x04"):
        return "zip"
    if first.startswith(b"\x80") and _LEGACY_MAGIC in first[:32]:
        return "legacy"
    for magic, what in _WHAT_ELSE:
        if first.lower().startswith(magic):
            raise CheckpointError(f"{path} is {what}")
    if path.suffix == ".safetensors":
        return "safetensors"  # its reader says exactly what is wrong
    if len(first) > 1 and first[0] == 0x80 and 2 <= first[1] <= 5:
        raise CheckpointError(
            f"{path} is a pickle that torch.save did not write; load it and torch.save its state dict"
        )
    raise CheckpointError(
        f"{path} is not a checkpoint: it starts with {first[:8]!r}, as no torch or safetensors file does"
    )


def _files_in(folder: Path) -> str:
    endings = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in endings)
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f": {', '.join(names[:3])}{more}"
