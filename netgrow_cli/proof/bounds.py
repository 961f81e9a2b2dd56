"""Units proven dead: constant for every input, by bounds of all values, not by what probes showed.

Bounds go through the network once, operation by operation (`Op.bounds`), in float64 and for one row: each number of a
value has its own, so that what differs from place to place (zero padding, positions) is told apart, and operations
move bounds as they move numbers; that takes the memory of a run on three rows. They hold for every finite input
within the ranges that the spec states, or for every one at all. Axes whose size a spec leaves open are run at one
size; what an operation says about them holds for any, or is nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from netgrow_cli.errors import NetgrowError
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.activity import Activity, Spot, inside_axes, read_spots
from netgrow_cli.proof.probes import Probes
from netgrow_cli.topology.graph import Graph, Input, Node, Ref
from netgrow_cli.topology.intervals import Interval
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import OPS, Call
from netgrow_cli.topology.ops.base import Bounding
from netgrow_cli.topology.ops.bounds import nothing
from netgrow_cli.topology.run import call_of, readers
from netgrow_cli.topology.solve import FREE_SIZE, AxisUse, Topology


@frozen
class Proven:
    """What holds for every input, in the terms of `Activity`: constant and zero by spot, and inside."""

    constant: Mapping[Spot, Any]
    zero: Mapping[Spot, Any]
    inside: Mapping[AxisUse, Any]

    def alone(self, activity: Activity) -> Activity:
        """An activity that knows this and nothing that was only seen."""
        return dataclasses.replace(activity, constant=self.constant, zero=self.zero, inside=self.inside)

    def beside(self, activity: Activity) -> Activity:
        """An activity that knows this and what was seen."""
        return dataclasses.replace(
            activity,
            constant=_either(activity.constant, self.constant),
            zero=_either(activity.zero, self.zero),
            inside=_either(activity.inside, self.inside),
        )


def prove(network: Network, widths: Sequence[int], probes: Probes | None = None) -> Proven:
    """What is constant, and what zero, for every input where these widths are read; for these probes too, where they
    are outside of the ranges that the spec states."""
    topology = network.solved()
    spots, inner = read_spots(topology, widths), inside_axes(topology, widths)
    constant: dict[Spot, Any] = {}
    zero: dict[Spot, Any] = {}
    inside: dict[AxisUse, Any] = {}
    for asked in _walk(network, probes=probes):
        node = asked.call.node
        for spot in spots.get(node.name, ()):
            x = asked.operands[spot[1]]
            zero[spot] = _throughout(x.zero, spot[2])
            constant[spot] = _throughout(x.still, spot[2]) if OPS[node.op].inside is None else zero[spot]
        known = OPS[node.op].bounds_inside
        if node.name in inner:
            made = known(asked) if known is not None else {}
            for use in inner[node.name]:
                x = made[use.param]
                inside[use] = _throughout(x.zero, len(x.shape) - 1)
    return Proven(constant, zero, inside)


def ranges(graph: Graph) -> str:
    """The inputs that a proof is for, for people."""
    read_as_numbers = {
        ref.node for node in graph.nodes for ref in node.inputs if node.op not in ("embedding", "positions")
    }
    stated = [given for given in graph.inputs if given.low is not None or given.high is not None]
    limits = any("int" not in given.dtype or given.name in read_as_numbers for given in stated)
    return "every input within the ranges of the spec" if limits else "every input"


def bounds_of(network: Network) -> dict[Ref, Interval]:
    """Bounds of all values of a network, inputs too. For tests and for looking."""
    found: dict[Ref, Interval] = {}
    for asked in _walk(network, found):
        del asked
    return found


def _walk(
    network: Network, keep: dict[Ref, Interval] | None = None, probes: Probes | None = None
) -> Iterator[Bounding]:
    """Each operation of the network with bounds of what it reads, in order. keep: takes all values' bounds."""
    graph = network.graph
    sizes = {given.shape[0]: 1 for given in graph.inputs if isinstance(given.shape[0], str)}
    topology = network.solved(sizes)
    unsized = _unsized(network, topology, sizes)
    left = readers(topology)
    values: dict[str, tuple[Interval, ...]] = {
        given.name: (_given(_reaching(given, probes), topology.values[given.name][0].shape),) for given in graph.inputs
    }
    for node in graph.nodes:
        operands = [values[ref.node][ref.output] for ref in node.inputs]
        asked = Bounding(_call(network, topology, node), OPS[node.op].run, operands, node.name in unsized)
        yield asked
        values[node.name] = _bounded(network, topology, asked)
        if keep is not None:
            keep.update({ref: values[ref.node][ref.output] for ref in node.inputs})
            keep.update({Ref(node.name, n): one for n, one in enumerate(values[node.name])})
        for ref in node.inputs:
            left[ref.node] -= 1
            if left[ref.node] == 0:
                del values[ref.node]


def _bounded(network: Network, topology: Topology, asked: Bounding) -> tuple[Interval, ...]:
    """Bounds of an operation's results."""
    import torch

    op = OPS[asked.call.node.op]
    whole = all(not x.low.is_floating_point() for x in asked.operands)
    with torch.no_grad():
        if op.bounds is not None and not (whole and all(x.known for x in asked.operands)):
            found = op.bounds(asked)
        elif all(x.known for x in asked.operands) and not asked.unsized:
            call = call_of(topology, asked.call.node, [x.low for x in asked.operands], network.read_real, torch.float64)
            made = op.run(call)
            found = tuple(Interval.exact(one) for one in (made if isinstance(made, tuple) else (made,)))
        else:
            found = nothing(asked)
    return tuple(one.sound() for one in (found if isinstance(found, tuple) else (found,)))


def _call(network: Network, topology: Topology, node: Node) -> Call:
    """The operation as rules of bounds take it: with parameters as they are stored."""
    import torch

    params = {role: network.read_real(name) for role, name in node.params.items()}
    unit_axis = topology.value(node.inputs[0]).unit_axis if node.inputs else 0
    return Call(
        torch, node, [], params, topology.values[node.name], unit_axis, OPS[node.op].all_attrs(node), torch.float64
    )


def _given(given: Input, shape: tuple[int, ...]) -> Interval:
    """What an input may hold: all numbers, or those within the range that the spec states."""
    import torch

    if given.dtype == "bool":
        low, high = 0.0, 1.0
    else:
        low = -torch.inf if given.low is None else float(given.low)
        high = torch.inf if given.high is None else float(given.high)
        if "int" in given.dtype:
            high -= 1.0
    full = torch.zeros(shape, dtype=torch.float64)
    return Interval.between(full + low, full + high)


def _reaching(given: Input, probes: Probes | None) -> Input:
    """The input with a range in which the user's data are, too."""
    if probes is None or probes.data is None or "float" not in given.dtype:
        return given
    data = probes.data[given.name]
    low = None if given.low is None else min(given.low, float(data.min()))
    high = None if given.high is None else max(given.high, float(data.max()))
    return dataclasses.replace(given, low=low, high=high)


def _unsized(network: Network, topology: Topology, sizes: Mapping[str, int]) -> set[str]:
    """Operations to which the size of an axis that the spec leaves open can matter: all that read such an axis.

    Rows of a batch are on their own as long as they stay on the first axis; an operation that takes them from there
    may add them up.
    """
    named = {item for given in network.graph.inputs for item in given.shape[1:] if isinstance(item, str)}
    free = named - set(network.graph.dims) - set(sizes)
    try:
        longer = _changed(network, topology, sizes, dict.fromkeys(free, 2 * FREE_SIZE)) if free else {}
        higher = _changed(network, topology, sizes, dict.fromkeys(sizes, 2)) if sizes else {}
    except NetgrowError:
        return {node.name for node in network.graph.nodes}
    found = set()
    for node in network.graph.nodes:
        rows = any(higher.get(ref) for ref in node.inputs)
        made = [higher.get(Ref(node.name, n)) for n in range(len(topology.values[node.name]))]
        moved = any(higher.get(ref, {0}) != {0} for ref in node.inputs) or (rows and any(one != {0} for one in made))
        if moved or any(ref in longer for ref in node.inputs):
            found.add(node.name)
    return found


def _changed(
    network: Network, topology: Topology, sizes: Mapping[str, int], other: Mapping[str, int]
) -> dict[Ref, set[int]]:
    """Values whose shape follows some named sizes, with the axes that do."""
    solved = network.solved({**sizes, **other})
    found = {}
    for name, values in topology.values.items():
        for n, value in enumerate(values):
            pairs = zip(value.shape, solved.values[name][n].shape, strict=True)
            if axes := {axis for axis, (one, two) in enumerate(pairs) if one != two}:
                found[Ref(name, n)] = axes
    return found


def _throughout(flags: Any, axis: int) -> Any:
    """By index of an axis, whether it holds everywhere else."""
    others = [n for n in range(flags.dim()) if n != axis]
    return (flags.amin(others) if others else flags).cpu().numpy()


def _either(seen: Mapping[Any, Any], known: Mapping[Any, Any]) -> dict[Any, Any]:
    return {place: flags | known[place] for place, flags in seen.items()}
