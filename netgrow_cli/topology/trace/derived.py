"""Weights that are computed from parameters alone, as graphs record them: weight_norm, and standardised weights.

weight_norm            _weight_norm(v, g, dim)
standardised weights   batch_norm(v as [1, out, rest], g * number or nothing, training=True), in the shape of v
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.trace.convert import Converter
from netgrow_cli.topology.trace.reading import argument, operation, shape

_REGROUPS = ("reshape", "view", "_unsafe_view", "flatten", "reshape_as", "view_as")


@frozen
class Weight:
    """What a layer multiplies by.

    prefix: of the operation's name, where the weight is computed. params: by role, nodes that are tensors.
    """

    prefix: str
    params: Mapping[str, Any]
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def weight_of(made: Converter, node: Any) -> Weight | None:
    """What a node is as a layer's weight: a tensor, or what there is a rule for; None for anything else."""
    if made.tensor(node) is not None:
        return Weight("", {"weight": node})
    if getattr(node, "op", None) != "call_function":
        return None
    if operation(node.target) == "_weight_norm":
        return _normed(made, node)
    source = _regrouped(node)
    found = standardized(made, source) if source is not None else None
    return found if found is not None and shape(found.params["weight"]) == shape(node) else None


def _normed(made: Converter, node: Any) -> Weight | None:
    direction, magnitude = node.args[:2]
    dim, rank = argument(node, 2, "dim", 0), len(shape(direction))
    if made.tensor(direction) is None or made.tensor(magnitude) is None or dim not in (0, *range(2, rank)):
        return None
    return Weight("weight_norm_", {"weight": direction, "magnitude": magnitude}, {"dim": dim} if dim else {})


def standardized(made: Converter, node: Any) -> Weight | None:
    """A batch_norm of a parameter's rows by what they are themselves; None for any other node."""
    arguments = _normed_by_itself(node)
    if arguments is None:
        return None
    source, gain, bias, training, eps = arguments
    weight = _regrouped(source)
    if not training or bias is not None or weight is None:
        return None
    if made.tensor(weight) is None or shape(source)[:2] != [1, shape(weight)[0]] or len(shape(source)) != 3:
        return None
    found, attrs = {"weight": weight}, {"eps": eps}
    if gain is None:
        return Weight("standardized_", found, attrs)
    scaled = _regrouped(gain) or gain
    if getattr(scaled, "op", None) == "call_function" and operation(scaled.target) == "mul":
        scaled, number = scaled.args
        if not isinstance(number, (int, float)):
            return None
        attrs["gain_scale"] = float(number)
    if made.tensor(scaled) is None or shape(scaled) != [shape(weight)[0]] + [1] * (len(shape(weight)) - 1):
        return None
    return Weight("standardized_", {**found, "gain": scaled}, attrs)


def _normed_by_itself(node: Any) -> tuple[Any, ...] | None:
    """Of a batch_norm without running statistics: source, gain, bias, whether it is training, eps."""
    if operation(node.target) == "getitem" and node.args[1] == 0:
        node = node.args[0]  # (a functional graph has its mean and deviation beside it)
    name, args = operation(node.target), tuple(node.args)
    if name == "batch_norm" and len(args) >= 8 and args[3] is args[4] is None:
        return *args[:3], args[5], args[7]
    if name == "_native_batch_norm_legit" and len(args) == 6:
        return *args[:4], args[5]
    return None


def _regrouped(node: Any) -> Any:
    """What a node is another shape of; None where it is none."""
    regroups = getattr(node, "op", None) == "call_function" and operation(node.target) in _REGROUPS
    return node.args[0] if regroups else None
