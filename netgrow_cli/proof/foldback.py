"""Folding back: from what a change did, the original tensors must come back, bit for bit in their own dtype.

Copies' outgoing weights are summed, their incoming ones each are the original's; fresh units are dropped once their
outgoing weights are seen to be zero or to cancel, or they to be zero or the mean themselves. Where probes sample,
this is complete: for expand and split without compensation it is a proof by itself. That units which were dropped,
rescaled gains and folded constants keep the function, it cannot see: that is left to the probes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.checkpoint.numbers import all_finite, narrow, widen
from netgrow_cli.checkpoint.positioned import read_into
from netgrow_cli.checkpoint.source import Open, RegionSource, Source
from netgrow_cli.checkpoint.transfer import COMPARED, Advance, in_parallel, nothing, read_scattered
from netgrow_cli.errors import CheckpointError
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.blocks import Block, Run, blocks, divisible, insertion, moves_rows_only, runs
from netgrow_cli.surgery.edit import CONSTANTS, ELEMENTS, absorbed, means, put, rescaled
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.surgery.tensor_edits import AxisEdit, TensorEdit
from netgrow_cli.topology.layout import IndexMap
from netgrow_cli.topology.solve import Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_COMPARED = 1 << 19
"""Elements that are compared at once."""

_LARGER = 4


@frozen
class FoldBack:
    """The outcome.

    exact: tensors that came back bit for bit; differing: those that are not as the change makes them; left: those
    that only probes can speak for, because something was dropped, rescaled or folded into them. whole: every change
    came back completely.
    """

    exact: int
    differing: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether folding back proves the change by itself."""
        return not self.differing and not self.left


def fold_back(
    topology: Topology, plan: Plan, old: Open, new: Open, patched: Collection[str] = (), advance: Advance = nothing
) -> FoldBack:
    """Fold every edited tensor back; compare every other one byte for byte."""
    exact, differing, left = 0, [], []
    names = [name for name in topology.aliases if topology.aliases[name] == name]
    changed = left_to_probes(topology, plan, patched)

    def folds(name: str) -> bool:
        try:
            return name in patched or tensor_folds(old(name), new(name), plan.edits.get(name), advance)
        except EOFError as error:
            raise CheckpointError(f"tensor {name!r}: {error}; something else is changing its file") from None

    for name, good in zip(names, in_parallel(folds, names), strict=True):
        if name in changed:
            left.append(name)
        if not good:
            differing.append(name)
        elif name not in changed:
            exact += 1
    return FoldBack(exact, tuple(differing), tuple(left))


def left_to_probes(topology: Topology, plan: Plan, patched: Collection[str] = ()) -> frozenset[str]:
    """Tensors that folding back cannot speak for, whatever it finds: something is dropped, rescaled or folded there."""
    losing = (name for name, edit in plan.edits.items() if edit.rescales or _loses(edit))
    return frozenset(name for name in (*losing, *patched) if topology.aliases.get(name) == name)


def tensor_folds(old: Source, new: Source, edit: TensorEdit | None, advance: Advance = nothing) -> bool:
    """Whether a tensor is what its edit makes of the old one (None: the same), block by block."""
    if new.dtype != old.dtype or new.shape != (edit.after if edit is not None else old.shape):
        return False
    if edit is None:
        return _same_bits(old, new, 0, 0, old.size, advance)
    if moves_rows_only(edit):
        return all(_run_folds(old, new, edit, run, advance) for run in runs(edit))
    if _zeros_fold(old, new, edit, advance):
        return True
    if divisible(edit):
        return all(_block_folds(old, new, block, advance) for block in blocks(edit, times=_times(edit)))
    before, after = old.whole(), new.whole()
    if len(edit.axes) == 1 and edit.axes[0].axis == 0 and before.ndim > 1:
        good = _columns_fold(before, after, edit, old.dtype)
    else:
        good = _folds(before, after, edit, old.dtype)
    advance(after.nbytes)
    return good


def _loses(edit: TensorEdit) -> bool:
    """Whether some old index has no successor."""
    return any(_misses(axis.index, edit.before[axis.axis]) for axis in edit.axes)


def _misses(index: IndexMap, count: int) -> bool:
    """Whether one of so many indices does not occur."""
    found = np.zeros(count + 1, dtype=bool)
    found[index] = True  # (-1, which stands for none, is the one too many)
    return not found[:-1].all()


def _same_bits(old: Source, new: Source, old_start: int, new_start: int, count: int, advance: Advance) -> bool:
    """Whether runs of elements are the same, bit for bit."""
    if isinstance(old, RegionSource) and isinstance(new, RegionSource):
        return old.same(old_start, new, new_start, count, advance)
    for done in range(0, count, _COMPARED):
        length = min(_COMPARED, count - done)
        one, other = old.flat(old_start + done, length), new.flat(new_start + done, length)
        if not _same(one, other):
            return False
        advance(other.nbytes)
    return True


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays of one dtype hold the same bits; they need not lie in one run of memory."""
    if one.shape != other.shape:
        return False
    if not one.ndim or not one.strides[-1] == other.strides[-1] == one.itemsize:
        one, other = (np.ascontiguousarray(values).reshape(-1) for values in (one, other))
    row = one.shape[-1] * one.itemsize
    bits = next(word for word in ("u8", "u4", "u2", "u1") if row % np.dtype(word).itemsize == 0)
    return np.array_equal(one.view(bits), other.view(bits))


def _run_folds(old: Source, new: Source, edit: TensorEdit, run: Run, advance: Advance) -> bool:
    inner = math.prod(edit.after[1:])
    if run.old >= 0:
        return _same_bits(old, new, run.old * inner, run.first * inner, (run.last - run.first) * inner, advance)
    return all(
        _block_folds(old, new, block, advance) for block in blocks(edit, run.first, run.last, times=_times(edit))
    )


def _zeros_fold(old: Source, new: Source, edit: TensorEdit, advance: Advance) -> bool:
    """Whether zeros, all bits of them, were put between the old bytes of files that have to be read; another edit is
    not judged here."""
    if not (isinstance(old, RegionSource) and isinstance(new, RegionSource)) or new.hands_out_views:
        return False
    found = insertion(edit, new.region.size)
    if found is None or found.rows * found.old != old.region.size:
        return False
    step = max(1, min(found.rows, COMPARED // max(1, found.old)))
    one, kept, zeros = (
        bytearray(step * found.old),
        bytearray(step * found.old),
        bytearray(step * (found.new - found.old)),
    )
    into = {True: memoryview(kept), False: memoryview(zeros)}
    buffers, done = [], {True: 0, False: 0}
    for span, stays in found.runs * step:
        buffers.append(into[stays][done[stays] : done[stays] + len(span)])
        done[stays] += len(span)
    nothing_else = bytes(len(zeros))
    for first in range(0, found.rows, step):
        count = min(step, found.rows - first)
        read_into(old.region.fd, old.region.start + first * found.old, memoryview(one)[: count * found.old])
        read_scattered(new.region.fd, new.region.start + first * found.new, buffers[: count * len(found.runs)])
        # (What a shorter last block leaves in the buffers was equal, and zero, before.)
        if one != kept or zeros != nothing_else:
            return False
        advance(count * found.new)
    return True


def _times(edit: TensorEdit) -> int:
    """Bytes are compared in larger blocks than those of numbers that are calculated with."""
    return 1 if edit.rescales or any(axis.sharing or axis.mean for axis in edit.axes) else _LARGER


def _block_folds(old: Source, new: Source, block: Block, advance: Advance) -> bool:
    after = new.rows(block.first, block.last)
    advance(after.nbytes)
    return _folds(old.rows(block.old_first, block.old_last), after, block.edit, old.dtype)


def _columns_fold(before: Array, after: Array, edit: TensorEdit, dtype: str) -> bool:
    """Where only axis 0 changes, its columns are independent of each other."""
    before, after = (values.reshape(values.shape[0], -1) for values in (before, after))
    step = max(1, ELEMENTS // max(1, len(before), len(after)))
    for first in range(0, before.shape[1], step):
        one, other = before[:, first : first + step], after[:, first : first + step]
        if not _folds(one, other, dataclasses.replace(edit, before=one.shape, after=other.shape), dtype):
            return False
    return True


def _folds(before: Array, after: Array, edit: TensorEdit, dtype: str) -> bool:
    """Whether what was kept, what copies share and what was started is as the edit says."""
    expected, folded = before, after
    if any(axis.sharing for axis in edit.axes):
        folded = widen(after, dtype)  # (sums of copies need not be numbers of the dtype)
    for axis in edit.axes:
        expected = absorbed(expected, axis, dtype)
    for axis in reversed(edit.axes):
        for sharing in reversed(axis.sharing):
            total = np.take(folded, sharing.first, axis.axis) + np.take(folded, sharing.second, axis.axis)
            put(folded, axis.axis, sharing.first, total)
    kept = {axis.axis: axis.kept for axis in edit.axes}
    wide = _Wide(folded, dtype)
    if not all(_is_harmless(wide, edit, axis) and _is_started(before, wide, edit, axis, kept) for axis in edit.axes):
        return False
    for axis in edit.axes:
        folded = _taken(folded, axis.kept, axis.axis)
        expected = _taken(expected, axis.index[axis.kept], axis.axis)
    if edit.rescales:
        expected = rescaled(expected, edit, dtype, kept)
    if folded.dtype == expected.dtype and not any(axis.sharing for axis in edit.axes):
        return _same(folded, expected) or _equal(folded, expected, dtype)
    # A negative zero that was halved and summed comes back as zero: equal numbers are what counts here.
    return bool((folded == widen(expected, dtype)).all())


@frozen
class _Wide:
    """A tensor of which parts are looked at as float64."""

    values: Array
    dtype: str

    def take(self, axis: int, places: IndexMap) -> _Wide:
        return _Wide(_taken(self.values, places, axis), self.dtype)

    @property
    def numbers(self) -> Array:
        return self.values if self._is_wide else widen(self.values, self.dtype)

    @property
    def is_zero(self) -> bool:
        """Whether all are zero, of whichever sign."""
        if not self._is_wide and not self.values.any():  # (which all bits being zero says in any dtype)
            return True
        return not self.numbers.any()

    @property
    def is_finite(self) -> bool:
        return all_finite(self.values, "F64" if self._is_wide else self.dtype)

    @property
    def _is_wide(self) -> bool:
        return self.values.dtype == np.float64


def _taken(values: Array, places: IndexMap, axis: int) -> Array:
    """What stands at indices of one axis; not copied where they follow each other."""
    if len(places) and places[-1] - places[0] == len(places) - 1 and bool((np.diff(places) == 1).all()):
        return values[(slice(None),) * axis + (slice(int(places[0]), int(places[-1]) + 1),)]
    return np.take(values, places, axis)


def _equal(one: Array, other: Array, dtype: str) -> bool:
    return bool((widen(one, dtype) == widen(other, dtype)).all())


def _is_harmless(folded: _Wide, edit: TensorEdit, axis: AxisEdit) -> bool:
    """Readers of fresh units: zero, or cancelling in pairs."""
    if not len(axis.zero):
        return True
    first, second = axis.opposed
    for other in edit.axes:
        if other.axis != axis.axis and other.sharing:
            folded = folded.take(other.axis, other.unsummed)
    sums = folded.take(axis.axis, first).numbers + folded.take(axis.axis, second).numbers
    return folded.take(axis.axis, axis.lone).is_zero and not sums.any()


def _is_started(before: Array, folded: _Wide, edit: TensorEdit, axis: AxisEdit, kept: Mapping[int, IndexMap]) -> bool:
    """What makes fresh units: finite, and where equality rests on it, zero, the mean, or pairwise the same."""
    dtype = folded.dtype
    if not folded.take(axis.axis, axis.fresh).is_finite:
        return False
    constant = CONSTANTS.get(edit.start)
    if not (len(axis.blank) or axis.mirror or axis.mean or constant is not None):
        return True
    for other in edit.axes:
        if other.axis != axis.axis:
            folded = folded.take(other.axis, kept[other.axis])
    if not folded.take(axis.axis, axis.blank).is_zero:
        return False
    for mirrored in axis.mirror:
        first, second = (folded.take(axis.axis, places).numbers for places in mirrored)
        if not np.array_equal(first, second):
            return False
    if constant is not None:
        started = folded.take(axis.axis, axis.start).numbers
        wanted = narrow(np.full(started.shape, constant), dtype)
        wanted = rescaled(wanted, edit, dtype, {**kept, axis.axis: axis.start}) if edit.rescales else wanted
        if not np.array_equal(started, widen(wanted, dtype)):
            return False
    for averaging in axis.mean:
        wanted = means(before, edit, axis, averaging, dtype)
        for other in edit.axes:
            if other.axis != axis.axis:
                wanted = np.take(wanted, kept[other.axis], other.axis)
        found = folded.take(axis.axis, averaging.places).numbers
        if not np.array_equal(narrow(found, dtype), wanted):
            return False
    return True
