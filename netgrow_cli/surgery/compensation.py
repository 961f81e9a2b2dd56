"""Repair of a lossy prune: the layers that read dropped units are refitted, so that they give what they gave.

A reader's weight and the constant behind it are fitted by least squares to what it gave in the old network, from what
it gets in the new one, whose layers before it are refitted already. Readers that do not hear of each other share a pass
over the probes; kept are the moments of these and one batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.equivalence import torch_dtype
from netgrow_cli.proof.probes import Probes
from netgrow_cli.surgery.edit import apply_edit
from netgrow_cli.surgery.folding import Folds
from netgrow_cli.surgery.least_squares import Moments, Solution
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.surgery.readers import Left, Reader, find_readers, stages
from netgrow_cli.topology.graph import Graph, Node, Ref
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import Call
from netgrow_cli.topology.run import call_of

NEEDED = 2
"""Samples for each feature, below which a fit is said to be of too few."""

_AT_ONCE = 1 << 22
"""Features that are multiplied out at once."""

GraphOf = Callable[[Mapping[str, TensorInfo]], Graph]
"""The graph of the rewritten spec, for the new tensors."""


@frozen
class Refit:
    """A layer that was refitted.

    samples: rows times positions, on which so many features were weighed. explained: how much of what it lost was made
    up for, as a share of its squares, on the rows that were fitted.
    """

    layer: str
    tensors: tuple[str, ...]
    features: int
    samples: int
    explained: float

    @property
    def thin(self) -> bool:
        """Whether there were too few samples for so many features."""
        return self.samples < NEEDED * self.features


@frozen
class Repair:
    """The outcome: what is added to old tensors, which layers were refitted, and which were not."""

    folds: Folds
    refits: tuple[Refit, ...]
    left: tuple[Left, ...]


def pruned_network(network: Network, graph: GraphOf, plan: Plan, patches: Mapping[str, Any]) -> Network:
    """The network as a plan and patches make it, before it is written."""
    topology = network.solved()
    infos = plan.infos(topology, network.infos)
    made: dict[str, Any] = {}

    def read(name: str) -> Any:
        canonical = topology.aliases[name]
        edit, patch = plan.edits.get(canonical), patches.get(canonical)
        if edit is None and patch is None:
            return network.read(name)
        if canonical not in made:
            tensor = network.read(name)
            if patch is not None:
                tensor = (tensor.double() + patch.to(tensor.device).double()).to(tensor.dtype)
            made[canonical] = tensor if edit is None else apply_edit(tensor, edit, seed=0)
        return made[canonical]

    return Network(graph(infos), infos, read, network.device, progress=network.progress)


def compensate(network: Network, graph: GraphOf, plan: Plan, folds: Folds, probes: Probes, *, dtype: str) -> Repair:
    """Refit what reads dropped units.

    folds: their constants, which the new network has before it is fitted, so that nothing is added twice.
    """
    readers, left = find_readers(network, plan)
    patches = dict(folds.patches)
    refits: list[Refit] = []
    for stage in stages(network, readers):
        names = [reader.node.name for reader in stage]
        old, new = (_as_far_as(each, names) for each in (network, pruned_network(network, graph, plan, patches)))
        for reader, lost in zip(stage, _measured(old, new, plan, stage, probes, dtype), strict=True):
            why = lost.why_not()
            if why is not None:
                left.append(Left(reader.node.name, why))
                continue
            solution, moments = lost.moments.solved(), lost.moments
            _add(patches, plan, network, reader, solution)
            refits.append(
                Refit(reader.node.name, reader.tensors, moments.features, moments.samples, solution.explained)
            )
    return Repair(Folds(patches, folds.inexact), tuple(refits), tuple(left))


def _as_far_as(network: Network, names: Collection[str]) -> Network:
    """The part of a network that layers hear of, and they."""
    heard, kept = set(names), []
    for node in reversed(network.graph.nodes):
        if node.name in heard:
            kept.append(node)
            heard.update(ref.node for ref in node.inputs)
    outputs = tuple(Ref(name) for name in dict.fromkeys(names))
    graph = dataclasses.replace(network.graph, nodes=tuple(reversed(kept)), outputs=outputs)
    return dataclasses.replace(network, graph=graph, _solved={})


# -- measuring -----------------------------------------------------------------------------------------


class _Lost:
    """What one reader loses: the moments of the difference, and its size beside what the reader gives."""

    def __init__(self, reader: Reader, rows: Any, exact: float) -> None:
        self.reader = reader
        self.rows = rows
        self.moments = Moments(intercept=reader.constant is not None)
        self._exact = exact
        self._lost = 0.0
        self._given = 0.0

    def add(self, call: Call, before: Any, after: Any) -> None:
        """Take a batch in: the new network's call, and what the old and the new one give."""
        lost = before - after
        self._lost += float((lost.double() ** 2).sum())
        self._given += float((before.double() ** 2).sum())
        shape = tuple(call.params[self.reader.param].shape)
        operand, done = call.inputs[0], 0
        each = math.prod(operand.shape[1:]) * math.prod(shape[2:])  # (each number, under each tap of a kernel)
        step = max(1, _AT_ONCE // max(1, each))
        for start in range(0, len(operand), step):
            part = dataclasses.replace(call, inputs=[operand[start : start + step]])
            features = self.reader.form.features(part, shape)
            count, groups = features.shape[:2]
            self.moments.add(features, lost[done : done + count].reshape(count, groups, -1))
            done += count

    def why_not(self) -> str | None:
        """Why the reader is better left as it is; None where it is not."""
        moments = self.moments
        if math.sqrt(self._lost) <= self._exact * math.sqrt(self._given):
            return "it loses nothing that its dtype can tell"
        if not math.isfinite(self._lost):
            return "what it gives is not finite"
        if moments.samples <= moments.features:
            return f"{moments.samples} samples are too few for {moments.features} features"
        return None


def _measured(
    old: Network, new: Network, plan: Plan, readers: Sequence[Reader], probes: Probes, dtype: str
) -> list[_Lost]:
    """What readers lose on the probes, from the same inputs to both networks."""
    import torch

    real = torch_dtype(dtype)
    found = [_Lost(reader, _kept_rows(plan, old, reader), _rounding(old, reader)) for reader in readers]
    by_node: dict[str, list[_Lost]] = {}
    for lost in found:
        by_node.setdefault(lost.reader.node.name, []).append(lost)
    given: dict[tuple[str, str], Any] = {}

    def sums_of(network: Network, lost: _Lost, operands: Sequence[Any], results: Sequence[Any]) -> tuple[Call, Any]:
        node, form = network.graph.node(lost.reader.node.name), lost.reader.form
        call = call_of(network.solved(), node, operands, network.read_real, real)
        return call, form.sums(call, results[0], lost.reader.param)

    def watch_old(node: Node, operands: Sequence[Any], results: Sequence[Any]) -> None:
        for lost in by_node.get(node.name, ()):
            _, sums = sums_of(old, lost, operands, results)
            given[node.name, lost.reader.param] = sums if lost.rows is None else sums.index_select(1, lost.rows)

    def watch_new(node: Node, operands: Sequence[Any], results: Sequence[Any]) -> None:
        for lost in by_node.get(node.name, ()):
            call, sums = sums_of(new, lost, operands, results)
            lost.add(call, given.pop((node.name, lost.reader.param)), sums)

    probes.announce("refitting", old, new)
    with torch.no_grad():
        for sizes, inputs in probes.batches(real, old.device):
            old.outputs(sizes, inputs, real, watch_old)
            new.outputs(sizes, inputs, real, watch_new)
    return found


def _kept_rows(plan: Plan, network: Network, reader: Reader) -> Any:
    """Which of the reader's own old outputs are there in the new network; None for all."""
    import torch

    index = _index(plan, reader.weight, reader.form.out_axis)
    return None if index is None else torch.from_numpy(index.copy()).to(network.device)


def _rounding(network: Network, reader: Reader) -> float:
    """A relative difference that the reader's dtype cannot tell from none."""
    import torch

    return 0.5 * float(torch.finfo(network.read(reader.weight).dtype).eps)


# -- patches -------------------------------------------------------------------------------------------


def _add(patches: dict[str, Any], plan: Plan, network: Network, reader: Reader, solution: Solution) -> None:
    """A solution, put where the plan gathers it from."""
    infos = network.infos
    edit = plan.edits[reader.weight]
    _put(patches, plan, infos[reader.weight], reader.form.weight(solution.weight, edit.after))
    if reader.constant is not None:
        name, sign = reader.constant
        _put(patches, plan, infos[name], sign * solution.constant.reshape(-1))


def _put(patches: dict[str, Any], plan: Plan, info: TensorInfo, values: Any) -> None:
    """Add new values to a tensor's patch, at the old places that they come from."""
    import torch

    patch = torch.zeros(info.shape, dtype=torch.float64)
    edit = plan.edits.get(info.name)
    values = values.cpu()
    places = [torch.arange(size) for size in info.shape]
    for axis in edit.axes if edit is not None else ():
        places[axis.axis] = torch.from_numpy(axis.index.copy())
    patch[torch.meshgrid(*places, indexing="ij")] = values
    patches[info.name] = patch + patches[info.name].double().cpu() if info.name in patches else patch


def _index(plan: Plan, tensor: str, axis: int) -> Any:
    """By new index along an axis of a tensor, the old one; None where none has gone."""
    edit = plan.edits.get(tensor)
    return next((one.index for one in edit.axes if one.axis == axis), None) if edit is not None else None
