"""The pieces of a network that a change touches: the smallest connected parts around each changed width.

A node belongs to a piece where it computes something else than before (one of its tensors or settings changed), or
where a value that it makes or reads holds a changed width; who shares such a value is in one piece. So every value
that enters a piece or leaves it has the same shape in both networks. Given the same values at its border, a piece must
give the same values back; if all pieces do, the networks are equal, because everything between them is the same.

Shapes do not show all: rows that are multiplied because a sum further on is divided by the root of its new size, or a
constant that moved into the mean of a batch_norm behind a layer without bias, make values differ that hold no changed
width. Where what leaves a piece differs, the piece therefore grows by what reads it, a few times, before it is judged.

No value is drawn that could not be there. What must be computed stays computed (`context`): integers, masks, what does
not depend on any layer (positions, tables, the network's own inputs behind a reshape), and the last steps before the
border that bound a value's range (a softmax, a relu), so that random numbers go in where layers with weights end.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.proof.drawable import Drawable
from netgrow_cli.topology.graph import Graph, Node, Ref
from netgrow_cli.topology.layout import IndexMap, leaves
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.solve import Topology


class CannotTell(Exception):
    """The comparison in pieces cannot be made, which says nothing about the networks."""


@frozen
class Units:
    """Those units of a width in which two networks may differ, by their indices in the one and in the other."""

    old: IndexMap
    new: IndexMap


@frozen
class Edited:
    """What is known to have changed, all of it by name.

    tensors: those with other numbers or another shape. widths: by the names in the old topology; values that hold one
    of these may have the same shape. units: by such a width, which of its units changed, where that is known.
    confirmed: those of the tensors that folding back gave back, so that all other units' numbers are what they were.
    """

    tensors: frozenset[str]
    widths: frozenset[str] = frozenset()
    units: Mapping[str, Units] = dataclasses.field(default_factory=dict)
    confirmed: frozenset[str] = frozenset()


@frozen
class Piece:
    """One connected part, by the names of the old network.

    nodes: in an order in which they can run. context: nodes outside that are run once, for both sides. drawn: values
    that get random numbers. inputs: inputs of the network that are read. outputs: values that leave it.
    """

    nodes: tuple[Node, ...]
    context: tuple[Node, ...]
    drawn: tuple[Ref, ...]
    inputs: tuple[str, ...]
    outputs: tuple[Ref, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Its layers with parameters, or where none has, all that a spec names: what reports call it."""
        visible = [node for node in self.nodes if not node.hidden] or list(self.nodes)
        return tuple(node.name for node in visible if node.params) or tuple(node.name for node in visible)


@frozen
class Cut:
    """Two networks cut alike.

    names: by a node or input of the old one, what it is called in the new one. parts: the names of the nodes that
    belong together, in the order of the graph.
    """

    topology: Topology
    names: Mapping[str, str]
    parts: tuple[frozenset[str], ...]
    drawable: Drawable

    def piece(self, part: frozenset[str]) -> Piece:
        """A part with its border."""
        graph = self.topology.graph
        nodes = _ordered(graph, part)
        entering = dict.fromkeys(ref for node in nodes for ref in node.inputs if ref.node not in part)
        context, drawn, inputs = self.drawable.border(entering, part)
        if part & context:  # (integers that it reads are made of what it makes: all that lies between belongs to it)
            return self.piece(self.joined(part | context))
        read_outside = {ref for node in graph.around(part) if node.name not in part for ref in node.inputs}
        made = [ref for node in nodes for ref in _made(self.topology, node)]
        outputs = tuple(ref for ref in made if ref in read_outside or ref in graph.outputs)
        return Piece(tuple(nodes), tuple(_ordered(graph, context)), tuple(drawn), tuple(inputs), outputs)

    def grown(self, part: frozenset[str], differing: Collection[Ref], steps: int) -> frozenset[str]:
        """A part with what reads the differing values, so many steps on, and with all parts that it meets."""
        names, front = set(part), {ref.node for ref in differing}
        for _ in range(steps):
            readers = {node.name for node in self.topology.graph.around(front)} - front
            front = readers
            names |= readers
        return self.joined(frozenset(names))

    def joined(self, names: frozenset[str]) -> frozenset[str]:
        """These nodes with all of the parts that they are in."""
        return names.union(*(part for part in self.parts if part & names))


def cut(old: Topology, new: Topology, edited: Edited) -> Cut:
    """Cut two networks, solved with the same sizes, into pieces. Raises CannotTell where they do not correspond."""
    names = matched(old.graph, new.graph)
    changed = _changed_values(old, new, names, edited.widths)
    for ref, other in zip(old.graph.outputs, new.graph.outputs, strict=True):
        if ref in changed or names[ref.node] != other.node or ref.output != other.output:
            raise CannotTell(f"the output {ref} is another one")
    touched = {
        node.name
        for node in old.graph.nodes
        if _touched(node, old, new, names, edited.tensors)
        or any(ref in changed for ref in (*node.inputs, *_made(old, node)))
    }
    return Cut(old, names, _connected(old.graph, touched, changed), Drawable(old))


def _ordered(graph: Graph, names: Collection[str]) -> list[Node]:
    return [node for node in graph.around(names) if node.name in names]


# -- which node is which --------------------------------------------------------------------------------


def matched(old: Graph, new: Graph) -> dict[str, str]:
    """By node and input of the old graph, the new one's. Raises CannotTell where they are built differently.

    Layers go by their names; what netgrow put in between itself (the parts of index ranges, whose names state the
    ranges) by who reads it.
    """
    names = {given.name: given.name for given in old.inputs}
    if [given.name for given in old.inputs] != [given.name for given in new.inputs]:
        raise CannotTell("they have different inputs")
    others = {node.name: node for node in new.nodes}
    if len(old.nodes) != len(new.nodes) or len(old.outputs) != len(new.outputs):
        raise CannotTell("they have different numbers of layers or outputs")
    pairs = [(old.node(a.node), b.node) for a, b in zip(old.outputs, new.outputs, strict=True) if a.node not in names]
    pairs += [(node, node.name) for node in old.nodes if not node.hidden]
    while pairs:
        node, name = pairs.pop()
        other = others.get(name)
        if node.name in names and names[node.name] == name:
            continue
        if node.name in names or other is None or not _alike(node, other):
            raise CannotTell(f"{node.name!r} has no counterpart")
        names[node.name] = name
        for ref, there in zip(node.inputs, other.inputs, strict=True):
            if ref.output != there.output or (ref.node in names and names[ref.node] != there.node):
                raise CannotTell(f"{node.name!r} reads other values")
            if ref.node not in names:
                pairs.append((old.node(ref.node), there.node))
    return names


def _alike(one: Node, other: Node) -> bool:
    return (
        one.op == other.op
        and one.hidden == other.hidden
        and len(one.inputs) == len(other.inputs)
        and dict(one.params) == dict(other.params)
    )


# -- what changed -----------------------------------------------------------------------------------------


def _changed_values(old: Topology, new: Topology, names: Mapping[str, str], widths: Collection[str]) -> set[Ref]:
    """Values of another shape, or that hold a changed width."""
    ids = {identity for identity, info in old.widths.items() if info.name in widths}
    found = set()
    for name, outputs in old.values.items():
        others = new.values[names[name]]
        if len(outputs) != len(others):
            raise CannotTell(f"{name!r} has another number of outputs")
        for place, (value, other) in enumerate(zip(outputs, others, strict=True)):
            held = {leaf.id for axis in value.axes for leaf in leaves(axis)}
            if value.shape != other.shape or held & ids:
                found.add(Ref(name, place))
    given = next((graph_input.name for graph_input in old.graph.inputs if Ref(graph_input.name) in found), None)
    if given is not None:
        raise CannotTell(f"the input {given!r} is another one")
    return found


def _touched(node: Node, old: Topology, new: Topology, names: Mapping[str, str], tensors: Collection[str]) -> bool:
    """Whether its own tensors or settings are other ones."""
    if any(old.aliases[name] in tensors for name in node.params.values()):
        return True
    other = new.graph.node(names[node.name])
    return settings(node, old.graph) != settings(other, new.graph)


def settings(node: Node, graph: Graph) -> dict[str, Any]:
    """All settings, with named sizes as the numbers they stand for."""

    def stated(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [stated(item) for item in value]
        return graph.dims.get(value, value) if isinstance(value, str) else value

    return {key: stated(value) for key, value in OPS[node.op].all_attrs(node).items()} | {
        "ranges": stated(node.attrs.get("ranges", ()))
    }


def _made(old: Topology, node: Node) -> Iterator[Ref]:
    return (Ref(node.name, place) for place in range(len(old.values[node.name])))


def _connected(graph: Graph, touched: Collection[str], changed: Collection[Ref]) -> tuple[frozenset[str], ...]:
    """Touched nodes, those that share a changed value together, in the graph's order."""
    parent = {name: name for name in touched}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for node in graph.nodes:
        for ref in node.inputs:
            if ref in changed and ref.node in parent:
                parent[root(node.name)] = root(ref.node)
    parts: dict[str, list[str]] = collections.defaultdict(list)
    for node in graph.nodes:
        if node.name in parent:
            parts[root(node.name)].append(node.name)
    return tuple(frozenset(part) for part in parts.values())
