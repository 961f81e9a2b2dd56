"""Learnability: new units receive gradients, and no two units that a change made are alike.

Two steps of plain gradient descent on a random target are run on the changed network. A unit whose parameters
have no gradient in either step cannot learn; two units that still have the same incoming and outgoing weights
afterwards never separate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from netgrow_cli.checkpoint.dtypes import is_float
from netgrow_cli.checkpoint.names import is_buffer
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.equivalence import torch_dtype
from netgrow_cli.proof.probes import Probes
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.topology.layout import occurrences, rows_by_unit
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.run import run
from netgrow_cli.topology.solve import Topology

_STEPS = 2


@frozen
class Learnability:
    """The outcome, by width name: new units, those without gradient, and pairs that stay alike."""

    units: int
    stuck: tuple[tuple[str, int], ...]
    twins: tuple[tuple[str, int, int], ...]

    @property
    def good(self) -> bool:
        """Whether all new units learn and separate."""
        return not self.stuck and not self.twins

    def as_json(self) -> dict[str, Any]:
        """For reports."""
        return {"units": self.units, "stuck": [list(s) for s in self.stuck], "twins": [list(t) for t in self.twins]}


def learnability(old: Topology, plan: Plan, new: Network, probes: Probes, *, seed: int) -> Learnability:
    """Train the changed network two steps and look at the units that the plan made."""
    import torch

    dtype = torch_dtype("float64")
    params = {
        name: new.read(name).to(dtype).clone().requires_grad_(True)
        for name, info in new.infos.items()
        if is_float(info.dtype) and not is_buffer(name) and old.aliases[name] == name
    }
    total = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    generator = torch.Generator().manual_seed(seed)
    sizes, inputs = next(probes.batches(dtype, new.device))
    for _ in range(_STEPS):
        outputs = run(new.solved(sizes), lambda name: _param(new, old, params, name), inputs, dtype=dtype)
        loss = sum((out - torch.randn(out.shape, dtype=dtype, generator=generator)).square().mean() for out in outputs)
        used = list(params)
        grads = torch.autograd.grad(loss, [params[name] for name in used], allow_unused=True)
        for name, grad in zip(used, grads, strict=True):
            if grad is not None:
                total[name] += grad.abs()
                params[name] = (params[name] - 1e-2 * grad).detach().requires_grad_(True)
    return _judge(old, plan, params, total)


def _param(new: Network, old: Topology, params: dict[str, Any], name: str) -> Any:
    canonical = old.aliases[name]
    return params[canonical] if canonical in params else new.read(name)


def _judge(old: Topology, plan: Plan, params: dict[str, Any], total: dict[str, Any]) -> Learnability:
    stuck: list[tuple[str, int]] = []
    twins: list[tuple[str, int, int]] = []
    count = 0
    for change in plan.changes:
        made = sorted({*change.fresh, *(unit for group in change.copies.values() for unit in group)})
        count += len(made)
        name = old.widths[change.width].name
        gradient = _signature(old, plan, change.width, change.after, total)
        values = _signature(old, plan, change.width, change.after, params)
        stuck.extend((name, unit) for unit in made if not np.any(gradient[unit]))
        seen: dict[bytes, int] = {}
        for unit in made:
            key = values[unit].tobytes()
            if key in seen:
                twins.append((name, seen[key], unit))
            seen.setdefault(key, unit)
    return Learnability(count, tuple(stuck), tuple(twins))


def _signature(old: Topology, plan: Plan, width: int, size: int, tensors: dict[str, Any]) -> Any:
    """For each unit, all numbers that are indexed by it, in one row."""
    rows: list[Any] = []
    for name, layouts in old.tensors.items():
        if name not in tensors:
            continue
        for axis, layout in enumerate(layouts):
            for labels in occurrences(layout, width, plan.sizes):
                rows.append(rows_by_unit(tensors[name].detach().cpu().numpy(), axis, labels, size))
    return np.concatenate(rows, axis=1) if rows else np.zeros((size, 0))
