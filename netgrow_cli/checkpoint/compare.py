"""What differs between two checkpoints: names, shapes, dtypes and, if asked, values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from netgrow_cli.checkpoint.dtypes import is_float, nbytes
from netgrow_cli.checkpoint.names import is_buffer
from netgrow_cli.checkpoint.types import Checkpoint, TensorInfo
from netgrow_cli.checkpoint.values import ValueChange, difference
from netgrow_cli.frozen import frozen


@frozen
class Side:
    """One of the two checkpoints in numbers; tied tensors count once among parameters and bytes."""

    path: str
    format: str
    key: str | None
    tensors: int
    parameters: int
    bytes: int


@frozen
class Changed:
    """A tensor that is in both and not the same; `values` only where shape and dtype are the same."""

    name: str
    a: TensorInfo
    b: TensorInfo
    values: ValueChange | None = None


@frozen
class DiffReport:
    """order: the names of all that differs, as a person wants to read them."""

    a: Side
    b: Side
    changed: tuple[Changed, ...]
    only_a: tuple[TensorInfo, ...]
    only_b: tuple[TensorInfo, ...]
    order: tuple[str, ...]
    values_compared: bool

    @property
    def same(self) -> bool:
        """True if nothing that was compared differs."""
        return not (self.changed or self.only_a or self.only_b)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "same": self.same,
            "changed": [_changed_json(change) for change in self.changed],
            "only_a": [info.name for info in self.only_a],
            "only_b": [info.name for info in self.only_b],
        }


def compare(a: Checkpoint, b: Checkpoint, values: bool) -> DiffReport:
    """Compare two opened checkpoints by the names of their tensors, wrappers taken off."""
    changed = [
        change
        for name, info in a.tensors.items()
        if name in b.tensors and (change := _change(a, b, info, b.tensors[name], values)) is not None
    ]
    only_a = [info for name, info in a.tensors.items() if name not in b.tensors]
    only_b = [info for name, info in b.tensors.items() if name not in a.tensors]
    differing = {change.name for change in changed} | {info.name for info in (*only_a, *only_b)}
    order = [name for name in _reading_order(a, b) if name in differing]
    return DiffReport(
        _side(a), _side(b), tuple(changed), tuple(only_a), tuple(only_b), tuple(order), values_compared=values
    )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _change(a: Checkpoint, b: Checkpoint, left: TensorInfo, right: TensorInfo, values: bool) -> Changed | None:
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return Changed(left.name, left, right)
    if not values:
        return None
    apart = difference(left.dtype, a.read_bytes(left.name), b.read_bytes(left.name))
    return None if apart is None else Changed(left.name, left, right, apart)


def _side(checkpoint: Checkpoint) -> Side:
    own = [info for info in checkpoint.tensors.values() if info.tied_to is None]
    parameters = sum(math.prod(info.shape) for info in own if is_float(info.dtype) and not is_buffer(info.name))
    size = sum(nbytes(info.dtype, info.shape) for info in own)
    return Side(str(checkpoint.path), checkpoint.format, checkpoint.key, len(checkpoint.tensors), parameters, size)


def _reading_order(a: Checkpoint, b: Checkpoint) -> list[str]:
    """All names in the order of the model's layers.

    A torch file has that order; a safetensors file is sorted by dtype and then by letters.
    """
    first, second = (b, a) if a.format == "safetensors" and b.format == "torch" else (a, b)
    if first.format == "safetensors":
        return sorted({**a.tensors, **b.tensors}, key=natural_key)
    return _merged(list(first.tensors), list(second.tensors))


def _merged(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """`first` in its order; what only `second` has comes after what precedes it there."""
    place = {name: (index, 0) for index, name in enumerate(first)}
    anchor = (-1, 0)
    for name in second:
        anchor = place.setdefault(name, (anchor[0], anchor[1] + 1))
    return sorted(place, key=lambda name: place[name])


def _changed_json(change: Changed) -> dict[str, Any]:
    result: dict[str, Any] = {"name": change.name, "a": list(change.a.shape), "b": list(change.b.shape)}
    if change.a.dtype != change.b.dtype:
        result |= {"a_dtype": change.a.dtype, "b_dtype": change.b.dtype}
    if change.values is not None:
        result["values"] = {"max_abs": change.values.max_abs, "differing": change.values.differing}
    return result
