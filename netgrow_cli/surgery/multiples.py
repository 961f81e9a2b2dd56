"""For which factors two units stay multiples of each other, from what makes them to what reads them.

Where a unit's rows and biases are c times another's, so is its value, as far as the operations on the way allow: any c
through what is linear, c > 0 through a relu, c = -1 through a tanh, none but c = 1 through a gelu. Each operation says
so itself (`ops.base.Multiples`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from netgrow_cli.surgery.feeds import holds
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.ops.base import Multiples
from netgrow_cli.topology.solve import Topology


def multiples_of(topology: Topology, width: int) -> Multiples:
    """The factors that all operations allow which make units of a width or pass them on."""
    made = topology.makers.get(width, frozenset()) | topology.holders.get(width, frozenset())
    kinds = []
    for node in topology.graph.nodes:
        if node.name in made:
            held = [any(holds(axis, (width,)) for axis in topology.value(ref).axes) for ref in node.inputs]
            kinds.append(OPS[node.op].multiples_of(node, held))
    return _common(kinds)


def allows(kind: Multiples, factor: float) -> bool:
    """Whether a factor is one of them."""
    if factor == 1.0 or kind == "any":
        return True
    return factor > 0.0 if kind == "positive" else factor == -1.0 and kind == "odd"


def _common(kinds: Iterable[Multiples]) -> Multiples:
    return functools.reduce(
        lambda one, other: other if one in ("any", other) else one if other == "any" else "none", kinds, "any"
    )
