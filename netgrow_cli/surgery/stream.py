"""A tensor's edit from file to file: bytes that stay are copied as bytes, the others in blocks of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.checkpoint.positioned import write_at
from netgrow_cli.checkpoint.source import RegionSource, Source
from netgrow_cli.checkpoint.transfer import Advance, copy, nothing, part, read_scattered
from netgrow_cli.checkpoint.types import Region
from netgrow_cli.surgery.blocks import Insertion, blocks, divisible, insertion, moves_rows_only, runs
from netgrow_cli.surgery.edit import Draws, edited, row_blocks
from netgrow_cli.surgery.tensor_edits import TensorEdit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def edit_into(source: Source, edit: TensorEdit, seed: int, new: Region, advance: Advance = nothing) -> None:
    """Write the edited tensor's bytes to `new`. Memory: of one block, or of what cannot be divided into blocks."""
    draws = Draws(seed, edit, source)
    if isinstance(source, RegionSource) and moves_rows_only(edit):
        _move_rows(source, edit, draws, new, advance)
    elif isinstance(source, RegionSource) and (found := insertion(edit, new.size)) is not None:
        _insert_zeros(source, found, new, advance)
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


def _insert_zeros(source: RegionSource, found: Insertion, new: Region, advance: Advance) -> None:
    """Old columns are read straight to their new places between zeros that stay."""
    step = max((last - first for first, last in row_blocks((found.rows, found.elements))), default=1)
    buffer = bytearray(step * found.new)
    view = memoryview(buffer)
    spans = [(span.start, len(span)) for span in found.kept]
    pieces = [view[n * found.new + at : n * found.new + at + size] for n in range(step) for at, size in spans]
    for first in range(0, found.rows, step):
        count = min(step, found.rows - first)
        read_scattered(source.region.fd, source.region.start + first * found.old, pieces[: count * len(spans)])
        write_at(new.fd, new.start + first * found.new, view[: count * found.new])
        advance(count * found.new)
