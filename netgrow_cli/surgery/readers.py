"""Layers that multiply what they read by a weight and sum it up, and what takes the constants that they make.

For each: the weight as matrices, one for each group, the features that these multiply, and the sums that come out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.folding import constants_go_to
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import leaves
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import Call
from netgrow_cli.topology.ops.conv import patches
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import AxisUse, Topology


@frozen
class Form:
    """How an operation reads with one of its parameters.

    features: (samples, groups, features), from the call and the parameter's shape. sums: (samples, outputs), from the
    call, its result and the parameter's name. weight: (groups, outputs, features) in the parameter's shape.
    out_axis: which of the parameter's axes the outputs are.
    """

    features: Callable[[Call, tuple[int, ...]], Any]
    sums: Callable[[Call, Any, str], Any]
    weight: Callable[[Any, tuple[int, ...]], Any]
    out_axis: int = 0


@frozen
class Reader:
    """A layer that reads units which are dropped, and can be refitted.

    param: its parameter, and `weight` that tensor. constant: the tensor that takes a constant in, and its sign; None
    where there is none.
    """

    node: Node
    param: str
    weight: str
    constant: tuple[str, float] | None
    form: Form

    @property
    def tensors(self) -> tuple[str, ...]:
        """What a refit changes."""
        return (self.weight,) if self.constant is None else (self.weight, self.constant[0])


@frozen
class Left:
    """A layer that reads units which are dropped and stays as it is."""

    layer: str
    why: str


def find_readers(network: Network, plan: Plan) -> tuple[list[Reader], list[Left]]:
    """Who reads the units that a plan drops: layers that can be refitted, in order, and the others."""
    topology = network.solved()
    losing = {change.width for change in plan.changes if change.dropped}
    serves = _serves(topology)
    found: dict[tuple[str, str], Reader] = {}
    left: dict[str, str] = {}
    for use in topology.uses:
        if _consumes(use, losing):
            why = _why_not(topology, plan, use, serves)
            node = topology.graph.node(use.node)
            if why is not None:
                left.setdefault(use.node, why)
            else:
                constant = _constant(network, node, use.param)
                if constant is not None and len(serves[constant[0]]) > 1:
                    constant = None
                found[use.node, use.param] = Reader(node, use.param, use.tensor, constant, _form_of(node.op, use.param))
    for effect in topology.effects:
        if {leaf.id for leaf in leaves(effect.layout)} & losing:
            left.setdefault(effect.node, f"{topology.graph.node(effect.node).op} sees all of its units at once")
    order = {node.name: place for place, node in enumerate(topology.graph.nodes)}
    readers = sorted(found.values(), key=lambda reader: order[reader.node.name])
    names = sorted(left, key=lambda name: order[name])
    return readers, [Left(name, left[name]) for name in names]


def _consumes(use: AxisUse, widths: Collection[int]) -> bool:
    return any(role is Role.CONSUMES and {leaf.id for leaf in leaves(part)} & set(widths) for part, role in use.parts)


def _serves(topology: Topology) -> Mapping[str, Collection[tuple[str, str]]]:
    """By tensor, the layers and their parameters that it is."""
    found: dict[str, set[tuple[str, str]]] = {}
    for node in topology.graph.nodes:
        for param, name in node.params.items():
            found.setdefault(topology.aliases[name], set()).add((node.name, param))
    return found


def _why_not(
    topology: Topology, plan: Plan, use: AxisUse, serves: Mapping[str, Collection[tuple[str, str]]]
) -> str | None:
    """Why a layer is not refitted; None where it is."""
    node, edit = topology.graph.node(use.node), plan.edits.get(use.tensor)
    if topology.reads_inside(use):
        return f"{use.tensor} reads what {node.op} makes itself"
    if _form_of(node.op, use.param, missing=True) is None:
        return f"{node.op} is not refitted"
    if len(node.inputs) > 1:
        return f"{node.op} chooses its weights for each token"
    if len(serves[use.tensor]) > 1:
        others = ", ".join(sorted({name for name, _ in serves[use.tensor]} - {node.name})) or node.name
        return f"its {use.tensor} is that of {others} too"
    if edit is None or edit.rescales:
        return f"{use.tensor} is rescaled"
    return None


def _constant(network: Network, node: Node, param: str) -> tuple[str, float] | None:
    if param == "weight":
        return constants_go_to(network, node)
    bias = node.params.get(param.replace("weight", "bias"))
    return (network.solved().aliases[bias], 1.0) if bias is not None else None


# -- the forms ---------------------------------------------------------------------------------------


def _form_of(op: str, param: str, missing: bool = False) -> Any:
    form = _FORMS.get((op, param.removesuffix("_reverse")))
    assert form is not None or missing
    return form


def _rows(values: Any) -> Any:
    """The last axis, all else one below the other."""
    return values.reshape(-1, values.shape[-1])


def _weight(matrices: Any, _: tuple[int, ...]) -> Any:
    return matrices[0]


def _weight_io(matrices: Any, _: tuple[int, ...]) -> Any:
    return matrices[0].T


def _sums(_: Call, result: Any, __: str) -> Any:
    return _rows(result)


def _gate_sums(call: Call, _: Any, param: str) -> Any:
    """What a recurrent layer makes of its input, before it adds what it makes of itself; without a bias."""
    return _rows(call.functional.linear(call.inputs[0], call.params[param]))


def _conv_features(call: Call, shape: tuple[int, ...]) -> Any:
    found = patches(call, shape[2:])
    groups = found.shape[2] // shape[1]
    return found.reshape(-1, groups, shape[1] * found.shape[3])


def _conv_sums(_: Call, result: Any, __: str) -> Any:
    return _rows(result.movedim(1, -1))


def _conv_weight(matrices: Any, shape: tuple[int, ...]) -> Any:
    return matrices.reshape(shape)


def _input_features(call: Call, _: tuple[int, ...]) -> Any:
    return _rows(call.inputs[0]).unsqueeze(1)


_CONV = Form(_conv_features, _conv_sums, _conv_weight)
_RECURRENT = Form(_input_features, _gate_sums, _weight)
_FORMS: Mapping[tuple[str, str], Form] = {
    ("linear", "weight"): Form(_input_features, _sums, _weight),
    ("linear_io", "weight"): Form(_input_features, _sums, _weight_io, out_axis=1),
    **{(f"conv{dims}d", "weight"): _CONV for dims in (1, 2, 3)},
    **{(op, "weight_ih_l0"): _RECURRENT for op in ("lstm", "gru", "rnn")},
}


def stages(network: Network, readers: Sequence[Reader]) -> list[list[Reader]]:
    """Readers in the order in which they can be fitted: none of a stage hears of another of the same stage."""
    graph, reading = network.graph, {reader.node.name for reader in readers}
    behind = {given.name: 0 for given in graph.inputs}
    for node in graph.nodes:
        before = max((behind[ref.node] for ref in node.inputs), default=0)
        behind[node.name] = before + (node.name in reading)
    found: dict[int, list[Reader]] = {}
    for reader in readers:
        found.setdefault(behind[reader.node.name], []).append(reader)
    return [found[place] for place in sorted(found)]
