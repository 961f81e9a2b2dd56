"""Which values of a network random numbers can stand for, and which must be computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from netgrow_cli.topology.graph import Node, Ref
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.solve import Topology

_ANY_VALUE = ("add", "sub", "mul", "matmul", "einsum", "attention", "mean", "sum")
"""Operations without parameters whose result can be any number where their operands can."""

_NOT_REAL = (
    "lt le gt ge eq ne isnan isinf isfinite isin logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
    "bitwise_not bitwise_xor argmax argmin argsort bucketize searchsorted nonzero one_hot arange any all"
).split()
"""Functions of torch that give truth values or integers."""

_SECOND_NOT_REAL = ("topk", "sort", "max", "min", "median", "mode", "kthvalue")
"""Functions of torch whose second result is indices."""

_MOST = 64
"""Nodes that are run beside a piece to make one value; beyond, it is drawn where it can be."""


class Drawable:
    """What is known of the values of one network; asked for many borders."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._graph = topology.graph
        self._inputs = {given.name: given for given in topology.graph.inputs}
        self._real: dict[Ref, bool] = {}
        self._light: dict[str, bool] = {}
        for node in self._graph.nodes:  # in order, so that nothing recurses deeply
            self._light[node.name] = self._is_light(node)
            for place in range(len(topology.values[node.name])):
                self._real[Ref(node.name, place)] = self._is_real(node, place)

    def border(self, entering: Iterable[Ref], inside: Collection[str]) -> tuple[set[str], list[Ref], list[str]]:
        """For values that enter a piece: the nodes to run, the values to draw, and the network's inputs to take.

        inside: the piece's nodes; one of them is among those to run where it makes what cannot be drawn.
        """
        context: set[str] = set()
        drawn: dict[Ref, None] = {}
        inputs: dict[str, None] = {}
        waiting = list(entering)
        while waiting:
            ref = waiting.pop()
            if ref.node in self._inputs:
                inputs[ref.node] = None
            elif ref.node in context:
                continue
            elif (not self._real[ref]) if ref.node in inside else self._must_run(ref, len(context)):
                context.add(ref.node)
                waiting.extend(self._graph.node(ref.node).inputs)
            else:
                drawn[ref] = None
        # A node that runs anyway gives all of its outputs.
        return context, [ref for ref in drawn if ref.node not in context], list(inputs)

    def _must_run(self, ref: Ref, have: int) -> bool:
        node = self._graph.node(ref.node)
        if not self._real[ref] or self._light[ref.node]:
            return True
        return not node.params and node.op not in _ANY_VALUE and have < _MOST

    def _is_light(self, node: Node) -> bool:
        """Whether no layer with weights lies between the network's inputs and it."""
        weighs = bool(node.params) and node.op != "parameter"
        return not weighs and all(ref.node in self._inputs or self._light[ref.node] for ref in node.inputs)

    def _is_real(self, node: Node, place: int) -> bool:
        value, attrs = self._topology.values[node.name][place], OPS[node.op].all_attrs(node)
        if value.integer or node.op == "positions":
            return False
        if node.op == "constant":
            return "float" in str(attrs["dtype"])
        if node.params:
            return True
        name = str(attrs.get("call") or "").removeprefix("aten.").split(".")[0]
        stated = [item for item in _flat([attrs.get("args"), attrs.get("kwargs")]) if item.startswith("torch.")]
        types = [item for item in stated if any(word in item for word in ("bool", "int", "float", "half", "double"))]
        if types:
            return "float" in types[-1] or types[-1] in ("torch.half", "torch.double")
        if name in _NOT_REAL or (name in _SECOND_NOT_REAL and place == 1):
            return False
        # (A mask or index only chooses among the values of the first operand; other operands mix.)
        first = node.inputs[:1] if node.op in ("pick", "lookup") else node.inputs
        return not first or any(self._of_input(ref) for ref in first)

    def _of_input(self, ref: Ref) -> bool:
        given = self._inputs.get(ref.node)
        return "float" in given.dtype if given is not None else self._real[ref]


def _flat(value: object) -> list[str]:
    """All texts in nested arguments."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _flat(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _flat(item)]
    return []
