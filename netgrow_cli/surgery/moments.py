"""Optimizer state goes along with its parameters, so that training resumes.

A copy that passes on a share `a` receives the gradient a g: its first moment scales by a, its second by a^2;
what reads copies keeps its moments. Fresh entries: first moment 0, second the mean of the tensor's old ones
(zero there would make the first updates several times the learning rate). A parameter that was rescaled by s
has gradients 1/s as large. A merged unit undoes a split: what makes it gets the gradients of both (m added, v as
the square of the added roots), what reads it keeps its moments.

An average of a parameter (ASGD's `ax`, an EMA beside the model) is edited as the parameter is, with its fresh values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from netgrow_cli.surgery.edit import CONSTANTS, apply_edit
from netgrow_cli.surgery.tensor_edits import AxisEdit, TensorEdit
from netgrow_cli.topology.layout import IndexMap

if TYPE_CHECKING:
    import torch


def edit_moment(
    old: torch.Tensor,
    edit: TensorEdit,
    power: int,
    *,
    size: int = 0,
    fresh: Literal["zero", "mean"] | None = None,
) -> torch.Tensor:
    """A moment after its parameter's edit.

    power: 1 for means of gradients, 2 for means of their squares, 0 for what does not grow with the gradient. size: the
    power of the parameter's own size by which it grows. fresh: how fresh entries start, by default zero for means of
    gradients and the mean of the old ones for means of squares.
    """
    import torch

    new = old
    for axis in edit.axes:
        new = _pooled(new, axis, power)
    for axis in edit.axes:
        new = new.index_select(axis.axis, torch.from_numpy(np.maximum(axis.index, 0)))
        scale = axis.scale**power * axis.gain ** (size - power)
        if (scale != 1.0).any():
            shape = [1] * new.dim()
            shape[axis.axis] = -1
            new = (new.double() * torch.from_numpy(scale).reshape(shape)).to(old.dtype)
    start = _mean(_kept(old, edit)) if fresh == "mean" or (fresh is None and power == 2) else 0.0
    for axis in edit.axes:
        places = np.flatnonzero(axis.index < 0)
        if len(places):
            new = new.index_fill(axis.axis, torch.from_numpy(places), start)
    return (new * edit.gain ** (size - power)).to(old.dtype).contiguous() if edit.gain != 1.0 else new.contiguous()


def edit_average(
    old: torch.Tensor, edit: TensorEdit, seed: int, parameter: Callable[[], torch.Tensor] | None
) -> torch.Tensor:
    """An average of a parameter after the parameter's edit: the same indices, shares and noise, and its fresh values.

    parameter: the parameter itself before its edit; what is fresh in it has never changed, and is its own average.
    Where there is none, fresh values are drawn as for any tensor.
    """
    import torch

    new = apply_edit(old, edit, seed)
    drawn = {axis.axis: _drawn(axis, edit) for axis in edit.axes}
    if parameter is None or not any(len(places) for places in drawn.values()):
        return new
    made = apply_edit(parameter(), edit, seed).to(new.dtype)
    for axis, places in drawn.items():
        index = torch.from_numpy(places)
        new = new.index_copy(axis, index, made.index_select(axis, index))
    return new


def _drawn(axis: AxisEdit, edit: TensorEdit) -> IndexMap:
    """Where an axis has random values."""
    start = axis.start if edit.start not in CONSTANTS else axis.start[:0]
    return np.unique(np.concatenate([start, axis.random, *axis.opposed])).astype(np.int64)


def _kept(old: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    """The entries that stay, if any do: those of dead units, which have had no gradients, say nothing of fresh ones."""
    import torch

    kept = old
    for axis in edit.axes:
        stays = np.unique(axis.index[axis.index >= 0])
        if 0 < len(stays) < old.shape[axis.axis]:
            kept = kept.index_select(axis.axis, torch.from_numpy(stays))
    return kept


def _mean(old: torch.Tensor) -> float:
    return float(old.double().mean()) if old.numel() else 0.0


def _pooled(moment: torch.Tensor, axis: AxisEdit, power: int) -> torch.Tensor:
    """What makes merged units: first moments add, second as the square of the sum of roots; power 0 keeps the kept."""
    import torch

    for entry in axis.pooled if power else ():
        wide = moment.double() if power == 1 else moment.double().clamp(min=0).sqrt()
        gone, kept = torch.from_numpy(entry.gone), torch.from_numpy(entry.kept)
        shape = [1] * moment.dim()
        shape[axis.axis] = -1
        # (A negative factor turns a gradient around; roots of squares have no sign.)
        factor = torch.from_numpy(entry.factor if power == 1 else np.abs(entry.factor))
        taken = wide.index_select(axis.axis, gone) * factor.reshape(shape)
        wide = wide.index_add(axis.axis, kept, taken)
        moment = (wide if power == 1 else wide.square()).to(moment.dtype)
    return moment
