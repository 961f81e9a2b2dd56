"""A tensor's edit from file to file: bytes that stay are copied as bytes, the others in blocks of rows."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.checkpoint.positioned import write_at
from netgrow_cli.checkpoint.source import RegionSource, Source
from netgrow_cli.checkpoint.transfer import Advance, copy, nothing, part, read_scattered
from netgrow_cli.checkpoint.types import Region
from netgrow_cli.surgery.blocks import blocks, divisible, moves_rows_only, runs
from netgrow_cli.surgery.edit import Draws, edited, row_blocks
from netgrow_cli.surgery.tensor_edits import AxisEdit, TensorEdit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_LONG = 1 << 10
"""Bytes from which on a run is worth a place of its own in a read."""


def edit_into(source: Source, edit: TensorEdit, seed: int, new: Region, advance: Advance = nothing) -> None:
    """Write the edited tensor's bytes to `new`. Memory: of one block, or of what cannot be divided into blocks."""
    draws = Draws(seed, edit, source)
    if isinstance(source, RegionSource) and moves_rows_only(edit):
        _move_rows(source, edit, draws, new, advance)
    elif isinstance(source, RegionSource) and (axis := _inserted(edit, source)) is not None:
        _insert_zeros(source, edit, axis, new, advance)
    elif divisible(edit):
        row = new.size // max(1, edit.after[0])
        for block in blocks(edit):
            values = edited(source.rows(block.old_first, block.old_last), block.edit, draws)
            _write(new, block.first * row, values, advance)
    else:
        _write(new, 0, edited(source.whole(), edit, draws), advance)


def _write(new: Region, start: int, values: Array, advance: Advance) -> None:
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    write_at(new.fd, new.start + start, data)
    advance(len(data))


def _move_rows(source: RegionSource, edit: TensorEdit, draws: Draws, new: Region, advance: Advance) -> None:
    """Rows only come, go or change places."""
    row = new.size // max(1, edit.after[0])
    for run in runs(edit):
        if run.old >= 0:
            size = (run.last - run.first) * row
            copy(part(source.region, run.old * row, size), part(new, run.first * row, size), advance)
            continue
        for block in blocks(edit, run.first, run.last):
            _write(new, block.first * row, edited(source.rows(0, 0), block.edit, draws), advance)


def _inserted(edit: TensorEdit, source: RegionSource) -> AxisEdit | None:
    """The one axis, not the first, along which zeros come between what stays as it is; None for any other edit, and
    where what stays lies in pieces so short that reading them one by one would take longer."""
    if len(edit.axes) != 1 or edit.rescales or edit.axes[0].axis == 0:
        return None
    axis = edit.axes[0]
    if source.region.size // max(1, math.prod(edit.before[: axis.axis])) < _LONG:
        return None
    kept = axis.index[axis.index >= 0]
    others = (
        axis.sharing
        or axis.absorb
        or axis.mean
        or any(len(places) for places in (axis.start, axis.blank, axis.random, axis.carried, axis.opposed[0]))
    )
    everything = len(kept) == edit.before[axis.axis] and bool((kept == np.arange(len(kept))).all())
    return axis if everything and not others and len(axis.zero) == len(axis.index) - len(kept) else None


def _insert_zeros(source: RegionSource, edit: TensorEdit, axis: AxisEdit, new: Region, advance: Advance) -> None:
    """Old columns are read straight to their new places between zeros that stay."""
    outer, inner = math.prod(edit.after[: axis.axis]), math.prod(edit.after[axis.axis + 1 :])
    old_width, new_width = edit.before[axis.axis], edit.after[axis.axis]
    item = new.size // max(1, math.prod(edit.after))
    old_row, new_row = old_width * inner * item, new_width * inner * item
    places = np.flatnonzero(axis.index >= 0)
    cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    spans = [(int(places[a]) * inner * item, (b - a) * inner * item) for a, b in itertools.pairwise(cuts)]
    step = max((last - first for first, last in row_blocks((outer, new_width * inner))), default=1)
    buffer = bytearray(step * new_row)
    view = memoryview(buffer)
    pieces = [view[n * new_row + at : n * new_row + at + size] for n in range(step) for at, size in spans]
    for first in range(0, outer, step):
        count = min(step, outer - first)
        read_scattered(source.region.fd, source.region.start + first * old_row, pieces[: count * len(spans)])
        write_at(new.fd, new.start + first * new_row, view[: count * new_row])
        advance(count * new_row)
