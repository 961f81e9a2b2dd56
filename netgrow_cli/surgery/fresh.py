"""What the network computes at fresh units: zero, the mean of the others, or anything.

Readers may start at random where a fresh unit is zero, and must start at zero elsewhere; a norm over the
width stays exact only where its fresh units are zero (rms_norm) or the mean of the others (layer_norm). So the
knowledge is carried forward through the graph, operation by operation (`ops.base.Fresh`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.solve import Topology

Fill = Literal["random", "zero", "mean"]
"""How producers make a fresh unit: random rows, zero rows, or the mean of the old rows."""

State = Literal["zero", "mean", "any"]

Place = tuple[str, bool]
"""Where units are read: by a node at its operands, or (True) inside itself, as recurrent layers do."""


def states_at_inputs(topology: Topology, width: int, fill: Fill) -> dict[Place, State]:
    """By place: what the units of the width that are read there are at fresh ones, if the width is filled so."""
    producers, holders = topology.makers.get(width, frozenset()), topology.holders.get(width, frozenset())
    outputs: dict[str, State] = {}
    inputs: dict[Place, State] = {}
    for node in topology.graph.around(holders | producers):
        given: list[State | None] = [outputs.get(ref.node) if ref.node in holders else None for ref in node.inputs]
        held = [state for state in given if state is not None]
        bends = OPS[node.op].inside is not None or OPS[node.op].derives
        if node.name in producers:
            outputs[node.name] = "any" if fill == "random" or (fill == "mean" and bends) else fill
            inputs[node.name, True] = outputs[node.name]
        elif node.name in holders:
            outputs[node.name] = _through(node, given)
        if held:
            inputs[node.name, False] = held[0] if len(set(held)) == 1 else "any"
    return inputs


def _through(node: Node, given: Sequence[State | None]) -> State:
    """One operation's output at fresh units; None stands for an operand without the width."""
    kind = OPS[node.op].fresh
    held = [state for state in given if state is not None]
    same: State = held[0] if held and len(set(held)) == 1 else "any"
    alone = len(held) == len(given)
    if kind == "mean":
        shifts = node.op in ("add", "sub") and (not alone or bool(_number(node.attrs)))
        return "any" if shifts and same == "zero" else same
    if kind == "zero":
        return "zero" if same == "zero" and alone else "any"
    if kind == "product":
        if "zero" in held:
            return "zero"
        return "mean" if held == ["mean"] else "any"
    if kind == "normalises":
        return "zero" if same == "mean" else "any"
    return "any"


def _number(attrs: Mapping[str, object]) -> object:
    return attrs.get("by")
