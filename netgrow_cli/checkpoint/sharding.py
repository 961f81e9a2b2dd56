"""How tensors fall into shards."""

from __future__ import annotations

import re
from collections.abc import Sequence

from netgrow_cli.checkpoint.dtypes import nbytes
from netgrow_cli.checkpoint.folder_index import shard_name
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import UsageError

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]?i?b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """`5GB` (10^9), `500MiB` (2^20) or bytes, as a number of bytes. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--shard-size {text}: a size is needed, as in 5GB, 500MB, 2GiB or a number of bytes")
    unit = (match["unit"] or "b").lower()
    base = 1024 if "i" in unit else 1000
    size = int(float(match["number"]) * base ** _POWERS[unit.rstrip("b").rstrip("i")])
    if size < 1:
        raise UsageError(f"--shard-size {text}: at least one byte is needed")
    return size


def split(infos: Sequence[TensorInfo], size: int, base: str) -> dict[str, list[TensorInfo]]:
    """Tensors by shard, in their order, as transformers cuts: the next shard begins where one more would not fit.

    A tensor that is larger than a shard has one for itself. Names that are one tensor share a shard.
    """
    shards: list[list[TensorInfo]] = []
    current: list[TensorInfo] = []
    filled = 0
    for info in infos:
        if info.tied_to is not None:
            continue
        count = nbytes(info.dtype, info.shape)
        if count > size:
            shards.append([info])
            continue
        if filled + count > size:
            shards.append(current)
            current, filled = [], 0
        current.append(info)
        filled += count
    if current or not shards:
        shards.append(current)
    place = {info.name: shard for shard in shards for info in shard}
    for info in infos:
        if info.tied_to is not None:
            place[info.tied_to].append(info)
    return {shard_name(base, number, len(shards)): shard for number, shard in enumerate(shards)}
