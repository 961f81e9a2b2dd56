"""Scores: one number for each unit of a width, from the weights, or from numbers that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.topology.layout import Layout, occurrences
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import Topology

Floats = NDArray[np.float64]
Scores = Floats


def incoming_norm(network: Network, width: int) -> Scores:
    """L2 norm over everything that makes the unit: rows of weights, its biases."""
    return np.sqrt(_squares(network, width, Role.PRODUCES))


def outgoing_norm(network: Network, width: int) -> Scores:
    """L2 norm over everything that reads the unit."""
    return np.sqrt(_squares(network, width, Role.CONSUMES))


def weight_score(network: Network, width: int) -> Scores:
    """Incoming norm times outgoing norm: unchanged by rescaling a ReLU unit (c in, 1/c out)."""
    return incoming_norm(network, width) * outgoing_norm(network, width)


BY_WEIGHTS: dict[str, Callable[[Network, int], Scores]] = {
    "weight": weight_score,
    "incoming": incoming_norm,
    "outgoing": outgoing_norm,
}


def _squares(network: Network, width: int, wanted: Role) -> Scores:
    topology = network.solved()
    total = np.zeros(topology.widths[width].size)
    for tensor, axis in _places(topology, width, wanted):
        total += _add_up(topology.tensors[tensor][axis], width, _sum_squares(network.read_real(tensor), axis), total)
    return total


def _places(topology: Topology, width: int, wanted: Role) -> Iterator[tuple[str, int]]:
    """The axes of tensors that have a role for a width, each once."""
    done: set[tuple[str, int]] = set()
    for use in topology.uses:
        place = (use.tensor, use.axis)
        if place not in done and any(role is wanted and occurrences(part, width) for part, role in use.parts):
            done.add(place)
            yield place


def _add_up(layout: Layout, width: int, values: Floats, like: Floats) -> Floats:
    """For each unit, the sum over the places of an axis at which it stands."""
    total = np.zeros_like(like)
    for labels in occurrences(layout, width):
        there = labels >= 0
        np.add.at(total, labels[there], values[there])
    return total


def _sum_squares(tensor: Any, axis: int) -> Scores:
    wide = tensor.double().square()
    others = [n for n in range(wide.dim()) if n != axis]
    summed: Scores = (wide.sum(others) if others else wide).numpy()
    return summed


def unit_means(layout: Layout, width: int, values: Floats, like: Floats) -> Floats:
    """For each unit, the mean over the places of an axis at which it stands; 0 where it stands nowhere."""
    count = _add_up(layout, width, np.ones(len(values)), like)
    total = _add_up(layout, width, values, like)
    return np.divide(total, count, out=total, where=count > 0)


# -- from numbers along axes ------------------------------------------------------------------------

Along = Callable[[str, int], Floats | None]
"""Of a tensor and one of its axes, a number for each index, from the other axes; None where nothing is known."""


def of_makers(topology: Topology, width: int, mean: Along) -> Scores | None:
    """The mean over all numbers that make a unit; None where those of no maker are known."""
    total, count = np.zeros(topology.widths[width].size), np.zeros(topology.widths[width].size)
    for tensor, axis in _places(topology, width, Role.PRODUCES):
        values = mean(tensor, axis)
        if values is not None:
            layouts = topology.tensors[tensor]
            others = np.prod([layout.size for n, layout in enumerate(layouts) if n != axis])
            total += _add_up(layouts[axis], width, values * others, total)
            count += _add_up(layouts[axis], width, np.full(len(values), float(others)), count)
    return np.divide(total, count, out=total, where=count > 0) if count.any() else None


def summed_over_makers(topology: Topology, width: int, number: Along) -> Scores | None:
    """The sum over all tensors that make a unit; None where no maker's is known."""
    total, known = np.zeros(topology.widths[width].size), False
    for tensor, axis in _places(topology, width, Role.PRODUCES):
        values = number(tensor, axis)
        if values is not None:
            total += _add_up(topology.tensors[tensor][axis], width, values, total)
            known = True
    return total if known else None


def of_readers(topology: Topology, width: int, number: Callable[[str], Floats | None]) -> Scores | None:
    """Of what is read with each tensor, a number for each unit; where several read it, the largest.

    None where those of no reader are known.
    """
    total, known = np.zeros(topology.widths[width].size), False
    for use in topology.uses:
        if not any(role is Role.CONSUMES and occurrences(part, width) for part, role in use.parts):
            continue
        values = number(use.tensor)
        node = topology.graph.node(use.node)
        if values is None or not node.inputs:
            continue
        for layout in topology.value(node.inputs[0]).axes:
            if layout.size == len(values) and occurrences(layout, width):
                np.maximum(total, unit_means(layout, width, values, total), out=total)
                known = True
    return total if known else None


def dormancy(size: Scores) -> Scores:
    """How large each unit is beside the mean of its layer's (ReDo, Sokar et al. 2023, arXiv 2302.12902, equation 1)."""
    mean = float(size.mean())
    return size / mean if mean > 0 else np.zeros_like(size)
