"""Which rows of which tensors make what a node reads: back through the graph, from an operand to its producers.

Element by element: one tensor may hold queries, keys and values side by side, or in turns. Which elements of a
linear operation's input an element of its output depends on is seen by its derivative, so that no operation needs a
rule of its own here; what is linear is known by its kind (`ops.base.Fresh`).
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import Layout, leaves
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

_PRODUCTS = ("mul", "matmul", "einsum")
_SUMS = ("add", "sub", "cat", "stack")
_LINEAR_TOO = ("scale", "neg")
_BY_INDEX = ("lookup", "pick")  # the second operand holds whole numbers, which nothing depends on smoothly
_NORMS = ("rms_norm", "layer_norm")


@frozen
class Feed:
    """What an operand is made of.

    rows: by place, for each index whether the operand is made by it, linearly if `bends` is empty; by_maker: likewise
        for each layer that has the tensor.
    gains: places of `rows` that belong to a norm, by the norm's name.
    bends, shifts: the operations on the way that are not linear, and those that do not keep zeros.
    marks: by node and output, the elements on the way. followed: the nodes and operands that the way leads through.
    """

    rows: Mapping[Place, Flags]
    by_maker: Mapping[tuple[str, Place], Flags]
    gains: Mapping[Place, str]
    bends: tuple[str, ...]
    shifts: tuple[str, ...]
    marks: Mapping[tuple[str, int], torch.Tensor]
    followed: frozenset[tuple[str, int]]


def sums(effect: Effect) -> bool:
    """Whether an effect is a sum over products of activations."""
    return effect.kind in ("contraction", "attention")


def summed_axes(topology: Topology, effect: Effect) -> list[tuple[int, int]]:
    """The operands of such a node that are summed over, and the axis of each."""
    node = topology.graph.node(effect.node)
    ranks = [len(topology.value(ref).axes) for ref in node.inputs]
    return contracted(node.op, node.attrs, ranks, effect.axis)


def holds(layout: Layout, widths: Collection[int]) -> bool:
    """Whether any of the widths stands in a layout."""
    return any(leaf.id in widths for leaf in leaves(layout))


class Feeds:
    """Walks back through one topology. widths: those that are summed over."""

    def __init__(self, topology: Topology, widths: Collection[int]) -> None:
        self.topology = topology
        self._widths = frozenset(widths)
        self._nodes = topology.graph.nodes
        self._order = {node.name: n for n, node in enumerate(self._nodes)}
        self._uses: dict[str, list[AxisUse]] = collections.defaultdict(list)
        for use in topology.uses:
            self._uses[use.node].append(use)
        self._summed = {effect.node: summed_axes(topology, effect) for effect in topology.effects if sums(effect)}
        self._numbers: set[str] = set()  # values that depend on no input and no tensor
        for node in self._nodes:
            if not node.params and all(ref.node in self._numbers for ref in node.inputs):
                self._numbers.add(node.name)

    def of(self, name: str, operand: int) -> Feed:
        """What makes an operand of a node."""
        return _Walk(self, self._nodes[self._order[name]], operand).feed()

    def leak(self, chosen: Sequence[tuple[str, int, Feed]]) -> str | None:
        """What else the chosen operands' rows make: the node that reads it, but for the nodes and operands stated."""
        followed = {(name, operand) for name, operand, _ in chosen}.union(*(feed.followed for *_, feed in chosen))
        goals = {name for name, _, _ in chosen}
        marks: dict[tuple[str, int], torch.Tensor] = {}
        makers: dict[tuple[str, Place], Flags] = {}
        for _, _, feed in chosen:
            for key, found in feed.marks.items():
                marks[key] = marks[key] | found if key in marks else found
            for maker, flags in feed.by_maker.items():
                makers[maker] = flags | makers.get(maker, False)
        return self._other_maker(makers) or self._other_reader(marks, followed, goals)

    def _other_maker(self, makers: Mapping[tuple[str, Place], Flags]) -> str | None:
        """A layer that makes something else with the same rows of a tensor that it shares."""
        for place, flags in _united(makers).items():
            for use in self.topology.uses:
                there = makers.get((use.node, (use.tensor, use.axis)))
                if (use.tensor, use.axis) == place and (there is None or bool((flags & ~there).any())):
                    return repr(use.node)
        return None

    def _other_reader(
        self, marks: Mapping[tuple[str, int], torch.Tensor], followed: set[tuple[str, int]], goals: set[str]
    ) -> str | None:
        """A node that reads marked elements and makes anything of them that is not marked."""
        for ref in self.topology.graph.outputs:
            if (ref.node, ref.output) in marks:
                return "the model's output"
        for node in self._nodes:
            for operand, ref in enumerate(node.inputs):
                read = marks.get((ref.node, ref.output))
                if read is None or ((node.name, operand) in followed and node.name in goals):
                    continue
                rest = {n: _all(value) for n, value in enumerate(self.topology.values[node.name])}
                if (node.name, operand) in followed:
                    rest = {n: ~marks[node.name, n] if (node.name, n) in marks else all_ for n, all_ in rest.items()}
                unmarked = {n: found for n, found in rest.items() if bool(found.any())}
                if unmarked and bool((self.through(node, [operand], unmarked)[operand] & read).any()):
                    return repr(node.name)
        return None

    # -- what the walk asks ------------------------------------------------------------------------

    def before(self, name: str) -> Sequence[Node]:
        """The nodes before one, the last first."""
        return self._nodes[: self._order[name]][::-1]

    def holds(self, value: Value) -> bool:
        """Whether a value holds one of the widths."""
        return any(holds(axis, self._widths) for axis in value.axes)

    def made(self, node: Node) -> list[AxisUse]:
        """The axes of a node's parameters whose rows make its output: its own, or a norm's gain and bias."""
        uses = self._uses[node.name]
        produced = [use for use in uses if any(role is Role.PRODUCES for _, role in use.parts)]
        makes = uses if node.op in _NORMS and "weight" in node.params else produced
        mine = [use for use in makes if holds(self.topology.tensors[use.tensor][use.axis], self._widths)]
        return mine if any(map(self.holds, self.topology.values[node.name])) else makes

    def held(self, node: Node) -> list[int]:
        """The operands that pass on what is walked back: those with the widths where the output has them."""
        live = [n for n, ref in enumerate(node.inputs) if ref.node not in self._numbers]
        if node.op == "cat" or not any(map(self.holds, self.topology.values[node.name])):
            return live
        found = []
        for n in live:
            axes = enumerate(self.topology.value(node.inputs[n]).axes)
            gone = [axis for operand, axis in self._summed.get(node.name, ()) if operand == n]
            if any(holds(layout, self._widths) for axis, layout in axes if axis not in gone):
                found.append(n)
        return found

    def through(self, node: Node, operands: Sequence[int], outputs: Mapping[int, Any]) -> dict[int, Any]:
        """By operand, the elements that the marked ones of the outputs depend on; all where that is not known."""
        values = [self.topology.value(ref) for ref in node.inputs]
        known = (_is_linear(node, operands) or node.op in _SUMS) and node.op not in _BY_INDEX
        if known and not any(value.integer for value in values) and (not node.params or node.op == "scale"):
            return _dependence(self.topology, node, values, operands, outputs)
        return {n: _all(values[n]) for n in operands}


class _Walk:
    """One walk; what is pending is kept by node and output."""

    def __init__(self, feeds: Feeds, node: Node, operand: int) -> None:
        self._feeds = feeds
        self._topology = feeds.topology
        self._pending: dict[str, dict[int, Any]] = {}
        self._marks: dict[tuple[str, int], Any] = {}
        self._followed: set[tuple[str, int]] = set()
        self._rows: dict[tuple[str, Place], Flags] = {}
        self._gains: dict[Place, str] = {}
        self._bends: dict[str, None] = {}
        self._shifts: dict[str, None] = {}
        self._start = node.name
        self._add(node, operand, _all(self._topology.value(node.inputs[operand])))

    def feed(self) -> Feed:
        for node in self._feeds.before(self._start):
            pending = self._pending.pop(node.name, None)
            if pending is not None:
                self._node(node, pending)
            if not self._pending:
                break
        self._bends.update(dict.fromkeys(self._pending))  # it comes from the model's inputs
        bends, shifts, followed = tuple(self._bends), tuple(self._shifts), frozenset(self._followed)
        return Feed(_united(self._rows), self._rows, self._gains, bends, shifts, self._marks, followed)

    def _add(self, node: Node, operand: int, marks: Any) -> None:
        self._followed.add((node.name, operand))
        if bool(marks.any()):
            ref = node.inputs[operand]
            kept = self._pending.setdefault(ref.node, {})
            kept[ref.output] = kept[ref.output] | marks if ref.output in kept else marks

    def _node(self, node: Node, pending: Mapping[int, Any]) -> None:
        self._marks.update({(node.name, output): marks for output, marks in pending.items()})
        uses = self._feeds.made(node)
        if uses:
            for output, marks in pending.items():
                self._made(node, uses, self._topology.values[node.name][output], marks)
            return
        operands = _followed(node, self._feeds.held(node))
        whole = any(map(self._feeds.holds, self._topology.values[node.name]))
        alone = len(operands) == len(node.inputs)
        if not operands or not _is_linear(node, operands):
            self._bends.setdefault(node.name)
        if whole and not (operands and (_is_linear(node, operands) or (OPS[node.op].fresh == "zero" and alone))):
            self._shifts.setdefault(node.name)
        for operand, marks in self._feeds.through(node, operands, pending).items():
            self._add(node, operand, marks)

    def _made(self, node: Node, uses: Sequence[AxisUse], value: Value, marks: Any) -> None:
        """The rows of a layer's parameters that make the marked elements of its output."""
        if OPS[node.op].derives:
            self._bends.setdefault(node.name)
        for use in uses:
            layout = self._topology.tensors[use.tensor][use.axis]
            axis = _axis_of(node, use, value, layout)
            if axis is None:
                self._bends.setdefault(node.name)
                self._shifts.setdefault(node.name)
                continue
            others = [n for n in range(marks.dim()) if n != axis]
            place, flags = (use.tensor, use.axis), (marks.amax(others) if others else marks).numpy()
            self._rows[node.name, place] = flags | self._rows.get((node.name, place), False)
            if node.op in _NORMS:
                self._gains[place] = node.name


def _united(rows: Mapping[tuple[str, Place], Flags]) -> dict[Place, Flags]:
    """Rows of tensors, by whichever layers they make them."""
    found: dict[Place, Flags] = {}
    for (_, place), flags in rows.items():
        found[place] = flags | found.get(place, False)
    return found


def _followed(node: Node, held: Sequence[int]) -> list[int]:
    """Of the operands that hold what is walked back, those through which it goes on: one factor of a product."""
    return list(held[:1]) if node.op in _PRODUCTS else [n for n in held if n == 0 or node.op != "div"]


def _is_linear(node: Node, operands: Sequence[int]) -> bool:
    """Whether a node is linear in these operands together."""
    if node.op in _PRODUCTS or node.op == "div":
        return len(operands) == 1 and (node.op != "div" or operands[0] == 0)
    if node.op in _SUMS:
        return len(operands) == len(node.inputs) and not node.attrs.get("by")
    if node.op == "attention":
        return list(operands) == [2]
    return OPS[node.op].fresh == "mean" or node.op in _LINEAR_TOO


def _axis_of(node: Node, use: AxisUse, value: Value, layout: Layout) -> int | None:
    """The axis of a node's output that an axis of its parameter makes."""
    if node.op == "parameter":
        return use.axis
    places = [n for n, axis in enumerate(value.axes) if axis == layout]
    return value.unit_axis if value.unit_axis in places else places[0] if places else None


def _all(value: Value) -> torch.Tensor:
    """All elements of a value."""
    import torch

    return torch.ones(value.shape, dtype=torch.bool)


def _dependence(
    topology: Topology, node: Node, values: Sequence[Value], operands: Sequence[int], outputs: Mapping[int, Any]
) -> dict[int, Any]:
    """By operand, where the derivative of the marked elements by it is not zero, on random numbers."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def random(shape: Iterable[int]) -> torch.Tensor:
        return torch.rand(tuple(shape), dtype=torch.float64, generator=generator) + 0.5

    given = [random(value.shape).requires_grad_(n in operands) for n, value in enumerate(values)]
    with torch.enable_grad():
        sizes = {name: [layout.size for layout in topology.tensors[name]] for name in node.params.values()}
        result = OPS[node.op].run(call_of(topology, node, given, lambda name: random(sizes[name]), torch.float64))
        results = result if isinstance(result, tuple) else (result,)
        total = sum((results[n] * random(results[n].shape) * marks).sum() for n, marks in outputs.items())
        grads = torch.autograd.grad(total, [given[n] for n in operands], allow_unused=True)
    return {
        n: torch.zeros(values[n].shape, dtype=torch.bool) if grad is None else grad != 0
        for n, grad in zip(operands, grads, strict=True)
    }
