"""An edit by runs of rows: what a large tensor is changed by, and folded back by, in the memory of one block.

A block is the edit of a few new rows from the old rows that they come from: again a `TensorEdit`. What needs rows of
other blocks (sums of copies along axis 0, means, pairs) is not divided; such tensors are changed as a whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.edit import ELEMENTS
from netgrow_cli.surgery.tensor_edits import AxisEdit, TensorEdit
from netgrow_cli.topology.layout import IndexMap

_SPREAD = 4
"""How many times the rows that are used may be read for a block."""

_LONG = 1 << 10
"""Bytes from which on a run is worth a place of its own in a read."""


@frozen
class Block:
    """New rows first..last-1 are made by `edit` of old rows old_first..old_last-1."""

    first: int
    last: int
    old_first: int
    old_last: int
    edit: TensorEdit


@frozen
class Run:
    """New rows first..last-1 are the old rows from `old` on; fresh ones where that is -1."""

    first: int
    last: int
    old: int


@frozen
class Insertion:
    """Zeros that come between what stays as it is, along one axis that is not the first.

    rows: how many runs of bytes, of `old` bytes each before and of `new` (`elements` of them) after. kept: which bytes
    of each new run are the old ones, in order.
    """

    rows: int
    old: int
    new: int
    elements: int
    kept: tuple[range, ...]

    @property
    def runs(self) -> tuple[tuple[range, bool], ...]:
        """All bytes of a new run in order: the old ones (True), and the zeros."""
        found, end = [], 0
        for span in (*self.kept, range(self.new, self.new)):
            found += [(range(end, span.start), False), (span, True)]
            end = span.stop
        return tuple((span, old) for span, old in found if span)


def rows_of(edit: TensorEdit) -> AxisEdit | None:
    """What happens along axis 0."""
    return next((axis for axis in edit.axes if axis.axis == 0), None)


def divisible(edit: TensorEdit) -> bool:
    """Whether each new row comes from one old row, or from none."""
    rows = rows_of(edit)
    if not edit.before:
        return False
    if rows is None:
        return True
    apart = rows.sharing or rows.absorb or rows.mean or len(rows.opposed[0]) or len(rows.carried)
    return not apart and not any(len(first) for first, _ in rows.mirror)


def moves_rows_only(edit: TensorEdit) -> bool:
    """Whether old rows stay as they are, byte for byte."""
    return divisible(edit) and not edit.rescales and all(axis.axis == 0 for axis in edit.axes)


def insertion(edit: TensorEdit, size: int) -> Insertion | None:
    """An edit that puts zeros in and does nothing else, of a tensor of `size` bytes after; None for any other one, and
    where what stays lies in pieces so short that reading them one by one would take longer."""
    if len(edit.axes) != 1 or edit.rescales or edit.axes[0].axis == 0 or not size:
        return None
    axis = edit.axes[0]
    item, inner = size // math.prod(edit.after), math.prod(edit.after[axis.axis + 1 :])
    old, new = (shape[axis.axis] * inner * item for shape in (edit.before, edit.after))
    kept = np.flatnonzero(axis.index >= 0)
    others = (
        axis.sharing
        or axis.absorb
        or axis.mean
        or any(len(places) for places in (axis.start, axis.blank, axis.random, axis.carried, axis.opposed[0]))
    )
    everything = bool(np.array_equal(axis.index[kept], np.arange(edit.before[axis.axis])))
    if old < _LONG or others or not everything or len(axis.zero) != len(axis.index) - len(kept):
        return None
    cuts = [0, *(np.flatnonzero(np.diff(kept) != 1) + 1).tolist(), len(kept)]
    spans = tuple(
        range(int(kept[a]) * inner * item, (int(kept[b - 1]) + 1) * inner * item) for a, b in itertools.pairwise(cuts)
    )
    return Insertion(math.prod(edit.after[: axis.axis]), old, new, new // item, spans)


def runs(edit: TensorEdit) -> list[Run]:
    """All new rows, in order, as long runs."""
    index = _index(edit)
    if not len(index):
        return []
    expected = np.where(index[:-1] < 0, -1, index[:-1] + 1)
    cuts = [0, *(np.flatnonzero(index[1:] != expected) + 1).tolist(), len(index)]
    return [Run(first, last, int(index[first])) for first, last in itertools.pairwise(cuts)]


def blocks(edit: TensorEdit, first: int = 0, last: int | None = None, *, times: int = 1) -> Iterator[Block]:
    """New rows first..last-1, all if not said, in order, as blocks of moderate size, or of so many times that."""
    inner = max(math.prod(edit.after[1:]), math.prod(edit.before[1:]), 1)
    step = max(1, times * ELEMENTS // inner)
    index, last = _index(edit), len(_index(edit)) if last is None else last
    for start in range(first, last, step):
        yield from _compact(edit, index, start, min(start + step, last), _SPREAD * step)


def _compact(edit: TensorEdit, index: IndexMap, first: int, last: int, most: int) -> Iterator[Block]:
    """One block, or several where its old rows lie so far apart that too much would be read between them."""
    old = index[first:last]
    old = old[old >= 0]
    old_first, old_last = (int(old.min()), int(old.max()) + 1) if len(old) else (0, 0)
    if old_last - old_first > most and last - first > 1:
        middle = (first + last) // 2
        yield from _compact(edit, index, first, middle, most)
        yield from _compact(edit, index, middle, last, most)
    else:
        yield Block(first, last, old_first, old_last, _sliced(edit, first, last, old_first, old_last))


def _index(edit: TensorEdit) -> IndexMap:
    rows = rows_of(edit)
    return np.arange(edit.after[0], dtype=np.int64) if rows is None else rows.index


def _sliced(edit: TensorEdit, first: int, last: int, old_first: int, old_last: int) -> TensorEdit:
    rows = rows_of(edit)
    axes = edit.axes
    if rows is not None:
        none = np.zeros(0, dtype=np.int64)
        part = dataclasses.replace(
            rows,
            index=np.where(rows.index[first:last] < 0, -1, rows.index[first:last] - old_first),
            start=_within(rows.start, first, last),
            blank=_within(rows.blank, first, last),
            zero=_within(rows.zero, first, last),
            random=_within(rows.random, first, last),
            mirror=(),
            pooled=(),
            opposed=(none, none),
            scale=rows.scale[first:last],
            gain=rows.gain[first:last],
        )
        axes = tuple(part if axis is rows else axis for axis in axes)
    return dataclasses.replace(
        edit,
        before=(old_last - old_first, *edit.before[1:]),
        after=(last - first, *edit.after[1:]),
        axes=axes,
    )


def _within(places: IndexMap, first: int, last: int) -> IndexMap:
    return places[(places >= first) & (places < last)] - first
