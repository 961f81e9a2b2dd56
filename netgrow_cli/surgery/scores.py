"""Scores: one number for each unit of a width, from the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.topology.layout import occurrences
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.rule import Role

Scores = NDArray[np.float64]


def incoming_norm(network: Network, width: int) -> Scores:
    """L2 norm over everything that makes the unit: rows of weights, its biases."""
    return np.sqrt(_squares(network, width, Role.PRODUCES))


def outgoing_norm(network: Network, width: int) -> Scores:
    """L2 norm over everything that reads the unit."""
    return np.sqrt(_squares(network, width, Role.CONSUMES))


def weight_score(network: Network, width: int) -> Scores:
    """Incoming norm times outgoing norm: unchanged by rescaling a ReLU unit (c in, 1/c out)."""
    return incoming_norm(network, width) * outgoing_norm(network, width)


SCORES: dict[str, Callable[[Network, int], Scores]] = {
    "weight": weight_score,
    "incoming": incoming_norm,
    "outgoing": outgoing_norm,
}


def _squares(network: Network, width: int, wanted: Role) -> Scores:
    topology = network.solved()
    total = np.zeros(topology.widths[width].size)
    done: set[tuple[str, int]] = set()
    for use in topology.uses:
        if (use.tensor, use.axis) in done:
            continue
        if not any(role is wanted and occurrences(part, width) for part, role in use.parts):
            continue
        done.add((use.tensor, use.axis))
        squares = _sum_squares(network.read_real(use.tensor), use.axis)
        for labels in occurrences(topology.tensors[use.tensor][use.axis], width):
            there = labels >= 0
            np.add.at(total, labels[there], squares[there])
    return total


def _sum_squares(tensor: Any, axis: int) -> Scores:
    wide = tensor.double().square()
    others = [n for n in range(wide.dim()) if n != axis]
    summed: Scores = (wide.sum(others) if others else wide).numpy()
    return summed
