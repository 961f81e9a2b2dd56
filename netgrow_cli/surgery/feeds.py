"""Which rows of which tensors make what a node reads: back through the graph, from an operand to its producers.

Element by element: one tensor may hold queries, keys and values side by side, or in turns. Which elements of a
linear operation's input an element of its output depends on is seen by its derivative, so that no operation needs a
rule of its own here; what is linear is known by its kind (`ops.base.Fresh`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import Layout, leaves, new_size, occurrences
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.ops.attention import contracted
from netgrow_cli.topology.rule import Role, Value
from netgrow_cli.topology.run import call_of
from netgrow_cli.topology.solve import AxisUse, Effect, Topology

if TYPE_CHECKING:
    import torch

Place = tuple[str, int]
"""A tensor (its canonical name) and one of its axes."""

Flags = NDArray[np.bool_]

_LINEAR_TOO = ("stack", "scale")
_PRODUCTS = ("mul", "matmul", "einsum")
_NORMS = ("rms_norm", "layer_norm")


@dataclasses.dataclass(frozen=True)
class Feed:
    """What an operand is made of.

    rows: by place, for each index whether the operand is made by it, linearly if by nothing in `bends`.
    beside: likewise, what the rows are multiplied by on the way. gains: places of `rows` that belong to a norm.
    bends, shifts: the operations on the way that are not linear, and those that do not keep zeros.
    """

    rows: Mapping[Place, Flags]
    beside: Mapping[Place, Flags]
    gains: frozenset[Place]
    bends: tuple[str, ...]
    shifts: tuple[str, ...]

    @property
    def all_rows(self) -> dict[Place, Flags]:
        """Both kinds of rows."""
        return joined([self.rows, self.beside])


def joined(parts: Iterable[Mapping[Place, Flags]]) -> dict[Place, Flags]:
    """The union of several sets of rows."""
    found: dict[Place, Flags] = {}
    for part in parts:
        for place, flags in part.items():
            found[place] = found[place] | flags if place in found else flags
    return found


def holds(layout: Layout, widths: Collection[int]) -> bool:
    """Whether any of the widths stands in a layout."""
    return any(leaf.id in widths for leaf in leaves(layout))


def sums(effect: Effect) -> bool:
    """Whether an effect is a sum over products of activations."""
    return effect.kind in ("contraction", "attention")


def summed_axes(topology: Topology, effect: Effect) -> list[tuple[int, int]]:
    """The operands of such a node that are summed over, and the axis of each."""
    node = topology.graph.node(effect.node)
    ranks = [len(topology.value(ref).axes) for ref in node.inputs]
    return contracted(node.op, node.attrs, ranks, effect.axis)


class Feeds:
    """Walks back through one topology, for one set of widths."""

    def __init__(self, topology: Topology, widths: Collection[int]) -> None:
        self._topology = topology
        self._widths = frozenset(widths)
        self._nodes = topology.graph.nodes
        self._order = {node.name: n for n, node in enumerate(self._nodes)}
        self._uses: dict[str, list[AxisUse]] = {}
        for use in topology.uses:
            if any(role in (Role.PRODUCES, Role.PER_UNIT) and holds(part, self._widths) for part, role in use.parts):
                self._uses.setdefault(use.node, []).append(use)
        self._normed = {effect.node for effect in topology.effects if holds(effect.layout, self._widths)}
        self._summed = {effect.node: summed_axes(topology, effect) for effect in topology.effects if sums(effect)}

    def of(self, name: str, operands: Mapping[int, int | None]) -> Feed:
        """What makes some operands of a node. operands: by number, the axis that holds the widths; None for any."""
        return _Walk(self, self._nodes[self._order[name]], operands).feed()

    # -- what the walk asks ------------------------------------------------------------------------

    def before(self, name: str) -> Sequence[Node]:
        """The nodes before one, the last first."""
        return self._nodes[: self._order[name]][::-1]

    def marks(self, value: Value, axis: int | None) -> torch.Tensor:
        """The elements of a value at which the widths stand, on one axis or on any."""
        import torch

        found = torch.zeros(value.shape, dtype=torch.bool)
        for n, layout in enumerate(value.axes):
            if axis is None or n == axis:
                shape = [1] * len(value.axes)
                shape[n] = -1
                found |= torch.from_numpy(self.labelled(layout)).reshape(shape)
        return found

    def labelled(self, layout: Layout) -> Flags:
        """For each index of an axis whether one of the widths stands there."""
        flags = np.zeros(new_size(layout, {}), dtype=bool)
        for width in {leaf.id for leaf in leaves(layout)} & self._widths:
            for labels in occurrences(layout, width):
                flags |= labels >= 0
        return flags

    def made(self, node: Node) -> list[AxisUse]:
        """The axes of a node's parameters whose rows make the widths: its own, or a norm's gain and bias."""
        uses = self._uses.get(node.name, [])
        produced = [use for use in uses if any(role is Role.PRODUCES for _, role in use.parts)]
        if produced or not (node.op in _NORMS and node.name in self._normed and "weight" in node.params):
            return produced
        return uses

    def held(self, node: Node) -> list[int]:
        """The operands that hold one of the widths, but for axes that the node sums over."""
        found = []
        for n, ref in enumerate(node.inputs):
            axes = enumerate(self._topology.value(ref).axes)
            gone = [axis for operand, axis in self._summed.get(node.name, ()) if operand == n]
            if any(holds(layout, self._widths) for axis, layout in axes if axis not in gone):
                found.append(n)
        return found

    @property
    def topology(self) -> Topology:
        """The network."""
        return self._topology


class _Walk:
    """One walk; what is pending is kept by node and output: elements that count as rows, and those beside."""

    def __init__(self, feeds: Feeds, node: Node, operands: Mapping[int, int | None]) -> None:
        self._feeds = feeds
        self._topology = feeds.topology
        self._pending: dict[str, dict[tuple[int, bool], Any]] = {}
        self._rows: list[dict[Place, Flags]] = []
        self._beside: list[dict[Place, Flags]] = []
        self._gains: set[Place] = set()
        self._bends: dict[str, None] = {}
        self._shifts: dict[str, None] = {}
        for operand, axis in operands.items():
            value = self._topology.value(node.inputs[operand])
            self._add(node, operand, feeds.marks(value, axis), True)
        self._start = node.name

    def feed(self) -> Feed:
        for node in self._feeds.before(self._start):
            pending = self._pending.pop(node.name, None)
            if pending is not None:
                self._node(node, pending)
            if not self._pending:
                break
        if self._pending:  # it comes from the model's inputs
            self._bends.update(dict.fromkeys(self._pending))
        rows, beside = joined(self._rows), joined(self._beside)
        return Feed(rows, beside, frozenset(self._gains), tuple(self._bends), tuple(self._shifts))

    def _add(self, node: Node, operand: int, marks: Any, main: bool) -> None:
        if not bool(marks.any()):
            return
        ref = node.inputs[operand]
        kept = self._pending.setdefault(ref.node, {})
        kept[ref.output, main] = kept[ref.output, main] | marks if (ref.output, main) in kept else marks

    def _node(self, node: Node, pending: Mapping[tuple[int, bool], Any]) -> None:
        uses = self._feeds.made(node)
        if uses:
            for (output, main), marks in pending.items():
                self._made(node, uses, self._topology.values[node.name][output], marks, main)
            return
        held = self._feeds.held(node)
        linear, zero, first = _kind(node, held)
        for main in (True, False):
            outputs = {output: marks for (output, kept), marks in pending.items() if kept is main}
            if not outputs:
                continue
            if main and not (held and linear):
                self._bends.setdefault(node.name)
            if main and not (held and zero):
                self._shifts.setdefault(node.name)
            for operand, marks in self._through(node, held, outputs, linear).items():
                self._add(node, operand, marks, main and operand in first)

    def _made(self, node: Node, uses: Sequence[AxisUse], value: Value, marks: Any, main: bool) -> None:
        """The rows of a layer's parameters that make the marked elements of its output."""
        produced = any(role is Role.PRODUCES for use in uses for _, role in use.parts)
        for use in uses:
            layout = self._topology.tensors[use.tensor][use.axis]
            if not holds(layout, self._feeds._widths):
                continue
            axis = _axis_of(node, use, value, layout)
            if axis is None:
                flags = self._feeds.labelled(layout)
                self._bends.setdefault(node.name)
                self._shifts.setdefault(node.name)
            else:
                others = [n for n in range(marks.dim()) if n != axis]
                flags = (marks.amax(others) if others else marks).numpy() & self._feeds.labelled(layout)
            if flags.any():
                (self._rows if main else self._beside).append({(use.tensor, use.axis): flags})
                if not produced:
                    self._gains.add((use.tensor, use.axis))

    def _through(self, node: Node, held: Sequence[int], outputs: Mapping[int, Any], linear: bool) -> dict[int, Any]:
        """By operand that holds the widths, what the marked elements depend on; all where that is not known."""
        values = [self._topology.value(ref) for ref in node.inputs]
        if linear and not any(value.integer for value in values):
            return _dependence(self._topology, node, values, held, outputs)
        return {n: self._feeds.marks(values[n], None) for n in held}


def _kind(node: Node, held: Sequence[int]) -> tuple[bool, bool, Collection[int]]:
    """Whether a node is linear in operands that hold the widths, whether it keeps zeros, and in which operands."""
    kind, alone = OPS[node.op].fresh, len(held) == len(node.inputs)
    if node.op in _PRODUCTS or node.op == "div":
        return bool(held) and not (node.op == "div" and held[0] != 0), True, held[:1]
    if node.op in ("add", "sub"):
        keeps = alone and not node.attrs.get("by")
        return keeps, keeps, held
    if kind == "mean" or node.op in _LINEAR_TOO or (node.op == "attention" and held == [2]):
        return True, True, held
    return False, kind in ("zero", "product") and alone, held


def _axis_of(node: Node, use: AxisUse, value: Value, layout: Layout) -> int | None:
    """The axis of a node's output that an axis of its parameter makes."""
    if node.op == "parameter":
        return use.axis
    places = [n for n, axis in enumerate(value.axes) if axis == layout]
    return value.unit_axis if value.unit_axis in places else places[0] if places else None


def _dependence(
    topology: Topology, node: Node, values: Sequence[Value], held: Sequence[int], outputs: Mapping[int, Any]
) -> dict[int, Any]:
    """By held operand, where the derivative of the marked elements by it is not zero, on random numbers."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def random(shape: Sequence[int]) -> torch.Tensor:
        return torch.rand(tuple(shape), dtype=torch.float64, generator=generator) + 0.5

    operands = [random(value.shape).requires_grad_(n in held) for n, value in enumerate(values)]
    with torch.enable_grad():
        call = call_of(topology, node, operands, lambda name: random(_shape(topology, name)), torch.float64)
        result = OPS[node.op].run(call)
        results = result if isinstance(result, tuple) else (result,)
        total = sum((results[n] * random(results[n].shape) * marks).sum() for n, marks in outputs.items())
        grads = torch.autograd.grad(total, [operands[n] for n in held], allow_unused=True)
    return {
        n: torch.zeros(values[n].shape, dtype=torch.bool) if grad is None else grad != 0
        for n, grad in zip(held, grads, strict=True)
    }


def _shape(topology: Topology, tensor: str) -> tuple[int, ...]:
    return tuple(layout.size for layout in topology.tensors[tensor])
