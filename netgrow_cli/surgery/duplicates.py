"""Units that are bit for bit copies of others: everything that makes them is the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from netgrow_cli.topology.layout import occurrences, rows_by_unit
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.rule import Role


def duplicate_units(network: Network, width: int) -> list[tuple[int, int]]:
    """Each unit that equals an earlier one, and that one; found by hashing rows, not by comparing pairs."""
    rows = _rows(network, width)
    first: dict[bytes, int] = {}
    pairs = []
    for unit, row in enumerate(rows):
        key = row.tobytes()
        if key in first:
            pairs.append((unit, first[key]))
        else:
            first[key] = unit
    return pairs


def _rows(network: Network, width: int) -> Any:
    """For each unit, all numbers that make it: rows of producers, values per unit."""
    topology = network.solved()
    size = topology.widths[width].size
    parts: list[Any] = [np.zeros((size, 0))]
    for use in topology.uses:
        if not any(role in (Role.PRODUCES, Role.PER_UNIT) and occurrences(part, width) for part, role in use.parts):
            continue
        for labels in occurrences(topology.tensors[use.tensor][use.axis], width):
            values = network.read_real(use.tensor).double().numpy()
            # Adding zero makes the two zeros one.
            parts.append(rows_by_unit(values, use.axis, labels, size) + 0.0)
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
