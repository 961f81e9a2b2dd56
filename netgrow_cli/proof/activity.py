"""What units do on probes: which ones are constant, and with which value, wherever they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from netgrow_cli.errors import Refused
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.equivalence import torch_dtype
from netgrow_cli.proof.probes import Probes
from netgrow_cli.surgery.feeds import summed_axes, sums
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import Layout, leaves, occurrences
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.run import call_of
from netgrow_cli.topology.solve import AxisUse, Topology

Spot = tuple[str, int, int]
"""A node, one of its operands, and an axis of that."""


@frozen
class Activity:
    """What was seen.

    constant: by spot, for each index of the axis whether it never changed over the probes.
    zero: likewise, whether it was always zero. first: by (node, operand), its value on the first row.
    inside: as zero, for what recurrent layers read of themselves. These start from zero and can take no constant in,
        so that at their operands, too, only what is zero counts as constant.
    """

    topology: Topology
    probes: Probes
    constant: Mapping[Spot, Any]
    zero: Mapping[Spot, Any]
    first: Mapping[tuple[str, int], Any]
    inside: Mapping[AxisUse, Any]

    def dead(self, width: int) -> list[int]:
        """Units that are constant wherever they are read (a dead ReLU is constantly zero)."""
        return self._everywhere(width, self.constant)

    def silent(self, width: int) -> list[int]:
        """Units that are zero wherever they are read."""
        return self._everywhere(width, self.zero)

    def _everywhere(self, width: int, seen: Mapping[Spot, Any]) -> list[int]:
        info = self.topology.widths[width]
        flags = np.ones(info.size, dtype=bool)
        products = self._products()
        places = [(spot_layout(self.topology, spot), still) for spot, still in seen.items() if spot not in products]
        places += [(spot_layout(self.topology, spot), self._silent_in(group)) for spot, group in products.items()]
        places += [(self.topology.tensors[use.tensor][use.axis], still) for use, still in self.inside.items()]
        found = False
        for layout, still in places:
            for labels in occurrences(layout, width):
                flags[labels[~still & (labels >= 0)]] = False
                found = True
        return np.flatnonzero(flags).tolist() if found else []

    def _products(self) -> dict[Spot, list[Spot]]:
        """Spots at which units are multiplied before they are summed over: the first of each sum, and all of it."""
        found = {}
        for effect in self.topology.effects:
            if sums(effect):
                spots = [(effect.node, *place) for place in summed_axes(self.topology, effect)]
                found.update({spot: spots for spot in spots if spot in self.zero})
        return found

    def _silent_in(self, spots: Sequence[Spot]) -> Any:
        """A product is nothing where one of its operands is always zero."""
        return np.logical_or.reduce([self.zero[spot] for spot in spots])


def observe(network: Network, widths: Sequence[int], probes: Probes, *, dtype: str) -> Activity:
    """Watch where these widths are read while the probes run. Raises Refused where a function is not known."""
    real = torch_dtype(dtype)
    topology = network.solved()
    need_known_functions(topology)
    spots, inner = read_spots(topology, widths), inside_axes(topology, widths)
    inside: dict[AxisUse, Any] = {}
    constant: dict[Spot, Any] = {}
    zero: dict[Spot, Any] = {}
    first: dict[tuple[str, int], Any] = {}

    def watch(node: Node, operands: Sequence[Any], _: Sequence[Any]) -> None:
        for spot in spots.get(node.name, ()):
            value = operands[spot[1]]
            start = first.setdefault(spot[:2], value[:1].clone())
            others = [axis for axis in range(value.dim()) if axis != spot[2]]
            still = (value == start).amin(others).cpu().numpy() if others else (value == start).cpu().numpy()
            nothing = (value == 0).amin(others).cpu().numpy() if others else (value == 0).cpu().numpy()
            constant[spot] = constant.get(spot, True) & (still if OPS[node.op].inside is None else nothing)
            zero[spot] = zero.get(spot, True) & nothing
        reads_itself = OPS[node.op].inside
        if node.name in inner and reads_itself is not None:
            made = reads_itself(call_of(topology, node, operands, network.read_real, real))
            for use in inner[node.name]:
                nothing = (made[use.param] == 0).flatten(0, -2).all(0).cpu().numpy()
                inside[use] = inside.get(use, True) & nothing

    probes.announce("measuring", network)
    for sizes, inputs in probes.batches(real, network.device):
        network.outputs(sizes, inputs, real, watch)
    return Activity(topology, probes, constant, zero, first, inside)


def read_spots(topology: Topology, widths: Sequence[int]) -> dict[str, list[Spot]]:
    """By node, the operands and axes at which it reads one of the widths, as parameters or as a norm does."""
    wanted = set(widths)
    reading: dict[str, set[int]] = {}
    for use in topology.uses:
        for part, role in use.parts:
            if role is Role.CONSUMES:
                reading.setdefault(use.node, set()).update({leaf.id for leaf in leaves(part)} & wanted)
    summed: dict[str, set[tuple[int, int]]] = {}
    for effect in topology.effects:
        reading.setdefault(effect.node, set()).update({leaf.id for leaf in leaves(effect.layout)} & wanted)
        if sums(effect):
            summed.setdefault(effect.node, set()).update(summed_axes(topology, effect))
    spots: dict[str, list[Spot]] = {}
    for name, ids in reading.items():
        node = topology.graph.node(name)
        for operand, ref in enumerate(node.inputs):
            for axis, layout in enumerate(topology.value(ref).axes):
                # (Values only pass through attention: what reads them is behind it.)
                passing = name in summed and (operand, axis) not in summed[name]
                if {leaf.id for leaf in leaves(layout)} & ids and not passing:
                    spots.setdefault(name, []).append((name, operand, axis))
    return spots


def inside_axes(topology: Topology, widths: Sequence[int]) -> dict[str, list[AxisUse]]:
    """By node, the axes with which it reads one of the widths inside itself."""
    found: dict[str, list[AxisUse]] = {}
    for use in topology.uses:
        read = {leaf.id for part, role in use.parts if role is Role.CONSUMES for leaf in leaves(part)}
        if read & set(widths) and topology.reads_inside(use):
            found.setdefault(use.node, []).append(use)
    return found


def spot_layout(topology: Topology, spot: Spot) -> Layout:
    """The layout of the axis that is read at a spot."""
    ref = topology.graph.node(spot[0]).inputs[spot[1]]
    return topology.value(ref).axes[spot[2]]


def need_known_functions(topology: Topology) -> None:
    """A drafted spec does not know activations; what units do cannot be told through them."""
    for node in topology.graph.nodes:
        if node.op == "per_unit":
            raise Refused(
                f"which units are dead cannot be told: the function in {node.name!r} is not known, since the spec was "
                "drafted from names and shapes; name it (`netgrow infer CKPT -o SPEC`, or --activation relu)"
            )
