"""What units do on probes, as numbers: how large they are, how often they are not zero, what the outputs owe to them.

Units are looked at where they are read, behind their activation functions, as `activity` does. A unit that is read in
several places counts by the place where it does most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.frozen import frozen
from netgrow_cli.proof.activity import Spot, inside_axes, read_spots, spot_layout
from netgrow_cli.proof.equivalence import torch_dtype
from netgrow_cli.proof.probes import Probes, signs
from netgrow_cli.surgery.scores import unit_means
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import Layout, occurrences
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.run import call_of, run
from netgrow_cli.topology.solve import Topology

Floats = NDArray[np.float64]


@frozen
class Statistics:
    """By width id, one number a unit.

    size: the mean of its absolute value. active: the share of rows (and positions) on which it is not zero.
    """

    size: Mapping[int, Floats]
    active: Mapping[int, Floats]


@dataclasses.dataclass
class _Sums:
    """Sums along one axis that is read."""

    layout: Layout
    size: Any = 0.0
    active: Any = 0.0
    count: int = 0

    def add(self, value: Any, axis: int) -> None:
        rows = value.detach().movedim(axis, -1).flatten(0, -2)
        self.size = self.size + rows.abs().sum(0).double().cpu().numpy()
        self.active = self.active + (rows != 0).sum(0).cpu().numpy()
        self.count += len(rows)


def measure(network: Network, widths: Sequence[int], probes: Probes, *, dtype: str) -> Statistics:
    """Run the probes and add up what these widths' units are where they are read."""
    real, topology = torch_dtype(dtype), network.solved()
    spots, inner = read_spots(topology, widths), inside_axes(topology, widths)
    sums: dict[Any, _Sums] = {}

    def watch(node: Node, operands: Sequence[Any], _: Sequence[Any]) -> None:
        for spot in spots.get(node.name, ()):
            sums.setdefault(spot, _Sums(spot_layout(topology, spot))).add(operands[spot[1]], spot[2])
        reads_itself = OPS[node.op].inside
        if node.name in inner and reads_itself is not None:
            made = reads_itself(call_of(topology, node, operands, network.read_real, real))
            for use in inner[node.name]:
                layout = topology.tensors[use.tensor][use.axis]
                sums.setdefault(use, _Sums(layout)).add(made[use.param], -1)

    probes.announce("measuring", network)
    for sizes, inputs in probes.batches(real, network.device):
        network.outputs(sizes, inputs, real, watch)
    return Statistics(
        _by_unit(topology, widths, sums.values(), lambda one: one.size / one.count),
        _by_unit(topology, widths, sums.values(), lambda one: one.active / one.count),
    )


def _by_unit(
    topology: Topology, widths: Sequence[int], sums: Any, number: Callable[[_Sums], Floats]
) -> dict[int, Floats]:
    found = {width: np.zeros(topology.widths[width].size) for width in widths}
    for one in sums:
        values = number(one)
        for width in widths:
            np.maximum(found[width], unit_means(one.layout, width, values, found[width]), out=found[width])
    return found


# -- what outputs owe to units --------------------------------------------------------------------


def taylor(network: Network, widths: Sequence[int], probes: Probes, *, dtype: str, seed: int) -> dict[int, Floats]:
    """How much the outputs would change, to first order, if a unit were zero: the mean over rows of |a . df/da|.

    f is a sum of all outputs with signs drawn for each row and output, which stands for a loss where there is none; a
    and df/da are multiplied and added up over the positions of a row first (Molchanov et al. 2017, arXiv 1611.06440).
    """
    real, topology = torch_dtype(dtype), network.solved()
    spots = read_spots(topology, widths)
    sums: dict[tuple[Spot, int], Floats] = {}
    rows = 0
    probes.announce("measuring", network)
    for number, (sizes, inputs) in enumerate(probes.batches(real, network.device)):
        rows += len(next(iter(inputs.values())))
        for spot, product in _products(network, sizes, inputs, real, spots, f"{seed}:{number}"):
            layout = spot_layout(topology, spot)
            for width in widths:
                by_unit = _row_sums(layout, width, product, topology.widths[width].size)
                if by_unit is not None:
                    sums[spot, width] = sums.get((spot, width), 0.0) + np.abs(by_unit).sum(0)
    total: dict[int, Floats] = {width: np.zeros(topology.widths[width].size) for width in widths}
    for (_, width), values in sums.items():
        np.maximum(total[width], values / rows, out=total[width])
    return total


def _products(
    network: Network, sizes: Mapping[str, int], inputs: Mapping[str, Any], real: Any, spots: Any, seed: str
) -> Iterator[tuple[Any, Any]]:
    """By place, values times gradients, one row for each row of the batch: [row, unit]."""
    import torch

    seen: list[tuple[Any, Any]] = []

    def read(name: str) -> Any:
        tensor = network.read_real(name)
        tensor = tensor if network.device == "cpu" else tensor.to(network.device)
        # (So that every value behind a parameter has a gradient.)
        return tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor

    def watch(node: Node, operands: Sequence[Any], _: Sequence[Any]) -> None:
        for spot in spots.get(node.name, ()):
            if operands[spot[1]].requires_grad:
                seen.append((spot, operands[spot[1]]))

    with torch.enable_grad():
        topology = network.solved(sizes)
        outputs = run(topology, read, inputs, dtype=real, observe=network.watching(watch))
        smooth = [out for out in outputs if out.requires_grad]
        f = sum(
            (out * signs(tuple(out.shape), f"{seed}:{n}", real).to(out.device)).sum() for n, out in enumerate(smooth)
        )
        distinct = list({id(value): value for _, value in seen}.values())
        grads = torch.autograd.grad(f, distinct, allow_unused=True) if distinct and smooth else [None] * len(distinct)
    by_value = {id(value): grad for value, grad in zip(distinct, grads, strict=True)}
    counted: set[tuple[int, int]] = set()
    batch = len(next(iter(inputs.values())))
    for spot, value in seen:
        # A value's gradient has what all of its readers owe to it.
        if by_value[id(value)] is None or (id(value), spot[2]) in counted:
            continue
        counted.add((id(value), spot[2]))
        product = (value * by_value[id(value)]).detach().movedim(spot[2], -1).flatten(0, -2)
        rows = batch if len(product) % batch == 0 else 1
        yield spot, product.reshape(rows, -1, product.shape[-1]).sum(1).double().cpu().numpy()


def _row_sums(layout: Layout, width: int, product: Floats, size: int) -> Floats | None:
    """[row, unit]: the sum over the places of an axis at which a unit stands; None where none does."""
    found = None
    for labels in occurrences(layout, width):
        there = np.flatnonzero(labels >= 0)
        found = np.zeros((size, len(product))) if found is None else found
        np.add.at(found, labels[there], product.T[there])
    return None if found is None else found.T
