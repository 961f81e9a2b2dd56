"""Folding back: from what a change did, the original tensors must come back, bit for bit in their own dtype.

Copies' outgoing weights are summed, their incoming ones each are the original's; fresh units are dropped once their
outgoing weights are seen to be zero or to cancel, or they to be zero or the mean themselves. Where probes sample,
this is complete: for expand and split without compensation it is a proof by itself. That units which were dropped,
rescaled gains and folded constants keep the function, it cannot see: that is left to the probes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from netgrow_cli.surgery.edit import CONSTANTS, absorbed, means, rescaled
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.surgery.tensor_edits import AxisEdit, TensorEdit
from netgrow_cli.topology.layout import IndexMap
from netgrow_cli.topology.solve import Topology


@dataclasses.dataclass(frozen=True)
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
    topology: Topology,
    plan: Plan,
    old: Callable[[str], Any],
    new: Callable[[str], Any],
    patched: Collection[str] = (),
) -> FoldBack:
    """Fold every edited tensor back; compare every other one byte for byte."""
    import torch

    exact, differing, left = 0, [], []
    for name in topology.aliases:
        if topology.aliases[name] != name:
            continue
        before, after = old(name), new(name)
        edit = plan.edits.get(name)
        changed = name in patched or (edit is not None and (edit.rescales or _loses(edit)))
        if changed:
            left.append(name)
        if name in patched:
            continue
        if not (_same_bits(before, after) if edit is None else _folds(before, after, edit, torch)):
            differing.append(name)
        elif not changed:
            exact += 1
    return FoldBack(exact, tuple(differing), tuple(left))


def _loses(edit: TensorEdit) -> bool:
    """Whether some old index has no successor."""
    return any(len(np.unique(axis.index[axis.index >= 0])) < edit.before[axis.axis] for axis in edit.axes)


def _same_bits(before: Any, after: Any) -> bool:
    import torch

    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if before.dtype.is_floating_point:
        width = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[before.element_size()]
        before, after = before.contiguous().view(width), after.contiguous().view(width)
    return bool(torch.equal(before, after))


def _folds(before: Any, after: Any, edit: TensorEdit, torch: Any) -> bool:
    """Whether what was kept, what copies share and what was started is as the edit says."""
    if tuple(after.shape) != edit.after or after.dtype != before.dtype:
        return False
    expected, folded = before, after.to(torch.float64)
    for axis in edit.axes:
        expected = absorbed(expected, axis)
    for axis in reversed(edit.axes):
        for sharing in reversed(axis.sharing):
            first, second = torch.from_numpy(sharing.first), torch.from_numpy(sharing.second)
            folded = folded.index_add(axis.axis, first, folded.index_select(axis.axis, second))
    kept = {axis.axis: _kept(axis) for axis in edit.axes}
    if not all(
        _is_harmless(folded, edit, axis, torch) and _is_started(before, folded, edit, axis, kept, torch)
        for axis in edit.axes
    ):
        return False
    for axis in edit.axes:
        folded = _select(folded, axis.axis, kept[axis.axis], torch)
        expected = _select(expected, axis.axis, axis.index[kept[axis.axis]], torch)
    if edit.rescales:
        expected = rescaled(expected, edit, kept)
    # A negative zero that was halved and summed comes back as zero: equal numbers are what counts here.
    return bool(torch.equal(folded.to(before.dtype), expected))


def _kept(axis: AxisEdit) -> IndexMap:
    """New indices that hold an old one's numbers; of those that share them, the one that they were summed in."""
    return np.setdiff1d(np.flatnonzero(axis.index >= 0), _summed(axis))


def _summed(axis: AxisEdit) -> IndexMap:
    """New indices whose numbers were added to others'."""
    return np.concatenate([np.zeros(0, dtype=np.int64), *(sharing.second for sharing in axis.sharing)])


def _select(tensor: Any, axis: int, places: IndexMap, torch: Any) -> Any:
    return tensor.index_select(axis, torch.from_numpy(np.ascontiguousarray(places)))


def _is_harmless(folded: Any, edit: TensorEdit, axis: AxisEdit, torch: Any) -> bool:
    """Readers of fresh units: zero, or cancelling in pairs."""
    if not len(axis.zero):
        return True
    for other in edit.axes:
        if other.axis != axis.axis and other.sharing:
            left = np.setdiff1d(np.arange(len(other.index)), _summed(other))
            folded = _select(folded, other.axis, left, torch)
    first, second = axis.opposed
    lone = np.setdiff1d(axis.zero, np.concatenate([first, second]))
    sums = _select(folded, axis.axis, first, torch) + _select(folded, axis.axis, second, torch)
    return not bool(_select(folded, axis.axis, lone, torch).any()) and not bool(sums.any())


def _is_started(
    before: Any, folded: Any, edit: TensorEdit, axis: AxisEdit, kept: Mapping[int, IndexMap], torch: Any
) -> bool:
    """What makes fresh units: finite, and where equality rests on it, zero, the mean, or pairwise the same."""
    if not bool(_select(folded, axis.axis, np.flatnonzero(axis.index < 0), torch).isfinite().all()):
        return False
    for other in edit.axes:
        if other.axis != axis.axis:
            folded = _select(folded, other.axis, kept[other.axis], torch)
    if bool(_select(folded, axis.axis, axis.blank, torch).any()):
        return False
    for mirrored in axis.mirror:
        first, second = (_select(folded, axis.axis, places, torch) for places in mirrored)
        if not torch.equal(first, second):
            return False
    constant = CONSTANTS.get(edit.start)
    if constant is not None:
        started = _select(folded, axis.axis, axis.start, torch)
        wanted = torch.full(started.shape, constant, dtype=before.dtype)
        wanted = rescaled(wanted, edit, {**kept, axis.axis: axis.start}) if edit.rescales else wanted
        if not torch.equal(started, wanted.to(started.dtype)):
            return False
    for averaging in axis.mean:
        wanted = means(before, edit, axis, averaging)
        for other in edit.axes:
            if other.axis != axis.axis:
                wanted = _select(wanted, other.axis, kept[other.axis], torch)
        found = _select(folded, axis.axis, averaging.places, torch).to(before.dtype)
        if not torch.equal(found, wanted):
            return False
    return True
