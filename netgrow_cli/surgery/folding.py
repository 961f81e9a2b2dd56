"""Constants of dropped units, folded into what reads them: the next bias, or batch_norm's running mean.

The reader itself is run on the constants alone. Where its answer is one number for each output unit, adding that
to the bias is exact; a convolution that pads with zeros answers differently at the border, and is not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from netgrow_cli.frozen import frozen
from netgrow_cli.proof.activity import Activity
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.feeds import holds
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import occurrences
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import OPS, Call
from netgrow_cli.topology.solve import Topology


@frozen
class Folds:
    """What is added to old tensors before anything else, and what could not be folded exactly."""

    patches: Mapping[str, Any]
    inexact: tuple[str, ...]


def fold_constants(network: Network, activity: Activity, changes: Sequence[WidthChange]) -> Folds:
    """Fold the constant values of all units that the changes drop."""
    import torch

    topology = activity.topology
    patches: dict[str, Any] = {}
    inexact: list[str] = []
    dropping = {change.width for change in changes if change.dropped}
    for (name, operand), first in activity.first.items():
        node = topology.graph.node(name)
        if not node.params or operand != 0 or _sees(topology, name, dropping):
            continue
        constants = torch.zeros_like(first)
        for spot, still in activity.constant.items():
            if spot[:2] == (name, operand):
                index = _dropped_indices(activity, spot, still, changes)
                if len(index):
                    places = torch.from_numpy(index)
                    constants.index_copy_(spot[2], places, first.index_select(spot[2], places))
        if not bool(constants.any()):
            continue
        if len(node.inputs) > 1:
            inexact.append(f"{name} chooses its weights for each token, so that a constant it loses is none behind it")
            continue
        answer = _answer(network, activity, node, constants)
        unit = topology.values[name][0].unit_axis
        vector = answer.amax([axis for axis in range(answer.dim()) if axis != unit])
        shape = [-1 if axis == unit else 1 for axis in range(answer.dim())]
        if not torch.allclose(answer, vector.reshape(shape).expand_as(answer), rtol=1e-9, atol=0.0):
            inexact.append(f"{name} pads with zeros, so that a constant it loses shows at the border")
            continue
        target = constants_go_to(network, node)
        if target is None:
            inexact.append(f"{name} has no bias to take the constant of a unit it loses")
            continue
        tensor, sign = target
        if tensor in patches and not torch.equal(patches[tensor], sign * vector):
            inexact.append(f"{tensor} serves several places where the lost unit has different constants")
            continue
        patches[tensor] = sign * vector
    return Folds(patches, tuple(inexact))


def _sees(topology: Topology, name: str, widths: Collection[int]) -> bool:
    """Whether a node sees one of the widths as a whole, so that a constant is not all that it loses."""
    return any(effect.node == name and holds(effect.layout, widths) for effect in topology.effects)


def _dropped_indices(activity: Activity, spot: tuple[str, int, int], still: Any, changes: Sequence[WidthChange]) -> Any:
    """Indices along the spot's axis of units that are dropped and constant."""
    ref = activity.topology.graph.node(spot[0]).inputs[spot[1]]
    layout = activity.topology.value(ref).axes[spot[2]]
    gone = np.zeros(layout.size, dtype=bool)
    for change in changes:
        if change.kind not in ("prune", "recycle"):
            continue
        for labels in occurrences(layout, change.width):
            gone |= np.isin(labels, np.asarray(change.dropped, dtype=np.int64))
    return np.flatnonzero(gone & still)


def _answer(network: Network, activity: Activity, node: Node, constants: Any) -> Any:
    import torch

    op = OPS[node.op]
    params = {role: network.read(name).to(constants.dtype) for role, name in node.params.items() if role != "bias"}
    outputs = activity.topology.values[node.name]
    call = Call(torch, node, [constants], params, outputs, outputs[0].unit_axis, op.all_attrs(node))
    with torch.no_grad():
        return op.run(call)


def constants_go_to(network: Network, node: Node) -> tuple[str, float] | None:
    """The tensor that takes a constant in: the reader's bias, else the running mean of the batch_norm behind it."""
    topology = network.solved()
    if "bias" in node.params:
        return topology.aliases[node.params["bias"]], 1.0
    readers = [other for other in topology.graph.nodes if any(ref.node == node.name for ref in other.inputs)]
    is_output = any(ref.node == node.name for ref in topology.graph.outputs)
    if len(readers) == 1 and readers[0].op == "batch_norm" and not is_output:
        return topology.aliases[readers[0].params["running_mean"]], -1.0
    return None
