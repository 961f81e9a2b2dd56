"""Folding back: from what a change did, the original tensors must come back, bit for bit in their own dtype.

Copies' outgoing weights are summed, fresh units are dropped once their outgoing weights are seen to be zero or to
cancel. Where probes sample, this is complete: for expand and split without compensation it is a proof by
itself. What it cannot see (units that were dropped, rescaled gains, folded constants) is left to the probes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from netgrow_cli.surgery.plan import AxisEdit, Plan, TensorEdit
from netgrow_cli.topology.solve import Topology


@dataclasses.dataclass(frozen=True)
class FoldBack:
    """The outcome.

    exact: tensors that came back bit for bit; differing: those that did not; left: those that only probes can
    speak for, because something was dropped, rescaled or folded into them. whole: every change came back completely.
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
        if name in patched or (edit is not None and (edit.gain != 1.0 or _loses(edit))):
            left.append(name)
        if edit is None:
            same = name in patched or _same_bits(before, after)
        elif name in patched or edit.gain != 1.0 or any(axis.absorb for axis in edit.axes):
            continue
        else:
            same = _folds(before, after, edit, torch)
        if not same:
            differing.append(name)
        else:
            exact += name not in patched
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
    if tuple(after.shape) != edit.after:
        return False
    folded = after.to(torch.float64)
    for axis in edit.axes:
        for sharing in reversed(axis.sharing):
            first, second = torch.from_numpy(sharing.first), torch.from_numpy(sharing.second)
            folded = folded.index_add(axis.axis, first, folded.index_select(axis.axis, second))
    if not all(_is_harmless(folded, axis, torch) for axis in edit.axes):
        return False
    kept = before
    for axis in edit.axes:
        old, new = np.unique(axis.index, return_index=True)
        new, old = new[old >= 0], old[old >= 0]
        folded = folded.index_select(axis.axis, torch.from_numpy(new))
        kept = kept.index_select(axis.axis, torch.from_numpy(old))
    # A negative zero that was halved and summed comes back as zero: equal numbers are what counts here.
    return bool(torch.equal(folded.to(before.dtype), kept))


def _is_harmless(folded: Any, axis: AxisEdit, torch: Any) -> bool:
    """Readers of fresh units: zero, or cancelling in pairs."""
    if len(axis.zero):
        pairs_first, pairs_second = axis.opposed
        lone = np.setdiff1d(axis.zero, np.concatenate([pairs_first, pairs_second]))
        if bool(folded.index_select(axis.axis, torch.from_numpy(lone)).any()):
            return False
        one = folded.index_select(axis.axis, torch.from_numpy(pairs_first))
        other = folded.index_select(axis.axis, torch.from_numpy(pairs_second))
        return not bool((one + other).any())
    return True
