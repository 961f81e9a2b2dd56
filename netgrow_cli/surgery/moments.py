"""Optimizer state goes along with its parameters, so that training resumes.

A copy that passes on a share `a` receives the gradient a g: its first moment scales by a, its second by a^2;
what reads copies keeps its moments. Fresh entries: first moment 0, second the mean of the tensor's old ones
(zero there would make the first updates several times the learning rate). A parameter that was rescaled by s
has gradients 1/s as large. A merged unit undoes a split: what makes it gets the gradients of both (m added, v as
the square of the added roots), what reads it keeps its moments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.checkpoint.optimizer import OptimizerState, match_parameters, moments
from netgrow_cli.checkpoint.types import Checkpoint
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.surgery.tensor_edits import AxisEdit, TensorEdit
from netgrow_cli.topology.solve import Topology

if TYPE_CHECKING:
    import torch

# By what power of a parameter's gradient a moment grows.
_POWER = {"exp_avg": 1, "momentum_buffer": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}


def edited_state(
    optimizer: OptimizerState, checkpoint: Checkpoint, topology: Topology, plan: Plan
) -> dict[tuple[str | int, ...], Any]:
    """What takes the place of an optimizer's entries, by path into the checkpoint's tree.

    Raises CheckpointError where parameters cannot be told apart, or a kind of state is not known.
    """
    from netgrow_cli.errors import CheckpointError

    names = match_parameters(optimizer, checkpoint.tensors)
    replaced: dict[tuple[str | int, ...], Any] = {}
    for identity, entries in optimizer.state.items():
        name = names.get(identity)
        edit = plan.edits.get(topology.aliases[name]) if name is not None else None
        if edit is None:
            continue
        for key, moment in moments(entries, edit.before).items():
            if key not in _POWER:
                raise CheckpointError(
                    f"{optimizer.label}: {key!r} of {name} is a kind of optimizer state that netgrow does not know; "
                    "pass --drop-optimizer to leave the optimizer out"
                )
            place: tuple[str | int, ...] = (*optimizer.path, "state", identity, key)
            replaced[place] = edit_moment(moment, edit, _POWER[key])
    return replaced


def edit_moment(old: torch.Tensor, edit: TensorEdit, power: int) -> torch.Tensor:
    """A moment after its parameter's edit. power: 1 for means of gradients, 2 for means of their squares."""
    import torch

    new = old
    for axis in edit.axes:
        new = _pooled(new, axis, power)
    for axis in edit.axes:
        new = new.index_select(axis.axis, torch.from_numpy(np.maximum(axis.index, 0)))
        scale = axis.scale / axis.gain
        if (scale != 1.0).any():
            shape = [1] * new.dim()
            shape[axis.axis] = -1
            new = (new.double() * torch.from_numpy(scale**power).reshape(shape)).to(old.dtype)
    start = float(old.double().mean()) if power == 2 and old.numel() else 0.0
    for axis in edit.axes:
        fresh = np.flatnonzero(axis.index < 0)
        if len(fresh):
            new = new.index_fill(axis.axis, torch.from_numpy(fresh), start)
    return (new / edit.gain**power).to(old.dtype).contiguous() if edit.gain != 1.0 else new.contiguous()


def _pooled(moment: torch.Tensor, axis: AxisEdit, power: int) -> torch.Tensor:
    """What makes merged units: first moments add, second as the square of the sum of roots."""
    import torch

    for entry in axis.pooled:
        wide = moment.double() if power == 1 else moment.double().clamp(min=0).sqrt()
        gone, kept = torch.from_numpy(entry.gone), torch.from_numpy(entry.kept)
        shape = [1] * moment.dim()
        shape[axis.axis] = -1
        taken = wide.index_select(axis.axis, gone) * torch.from_numpy(entry.factor).reshape(shape)
        wide = wide.index_add(axis.axis, kept, taken)
        moment = (wide if power == 1 else wide.square()).to(moment.dtype)
    return moment
