"""Layers whose weight is computed from parameters: weight_norm, and standardised weights.

They are operations of their own, and no linear maps of their parameters: what is true of the rows and columns of a
weight is not of what it is computed from. What a norm, or a mean and a variance, is taken over is an effect.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from netgrow_cli.topology.ops.base import INT, NUMBER, Attr, Call, Op, Param
from netgrow_cli.topology.ops.conv import (
    ATTRS,
    TRANSPOSED_ATTRS,
    Also,
    conv_rule,
    run_of,
    run_transposed,
    transposed_rule,
)
from netgrow_cli.topology.ops.linear import apply_linear
from netgrow_cli.topology.rule import Context, RuleFunction, Value, notation

READ, MADE = "weight_norm", "weight_norm of what it makes"
"""Effects: each made unit's weights are divided by their norm over what is read; or that over made units too."""

STANDARDIZED = "standardized weights"
"""The effect on what is read: each made unit's weights less their mean, over their standard deviation."""

_PARAMETRIZED = re.compile(r"(?:^|\.)parametrizations\.\w+\.original\d*$")


def module_of(tensor: str) -> str:
    """The module that a tensor belongs to, the one whose weight it is where torch parametrizes that."""
    found = _PARAMETRIZED.search(tensor)
    return tensor[: found.start()] if found else tensor.rpartition(".")[0]


# -- weight_norm -------------------------------------------------------------------------------------


def _normed(plain: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """magnitude * weight / ||weight||, with the norm over all axes but `dim`."""

    def run(call: Call) -> Any:
        direction, dim = call.params["weight"], call.attrs["dim"]
        others = [axis for axis in range(direction.dim()) if axis != dim]
        norm = call.torch.linalg.vector_norm(direction, dim=others, keepdim=True)
        return _with_weight(call, direction * (call.params["magnitude"] / norm), plain)

    return run


def _with_weight(call: Call, weight: Any, plain: Callable[[Call], Any]) -> Any:
    """The plain operation with a weight that was computed."""
    params = {"weight": weight, **{role: tensor for role, tensor in call.params.items() if role == "bias"}}
    return plain(dataclasses.replace(call, params=params))


def _ones(rank: int, dim: int, letters: str) -> str:
    """The pattern of a magnitude: the letters on one axis, size 1 on the others."""
    return " ".join(letters if axis == dim else f"one{axis}" for axis in range(rank))


def _by_dim(rank: int, rules: dict[int, RuleFunction]) -> RuleFunction:
    """The rule for the `dim` that is stated."""

    def rule(context: Context) -> tuple[Value, ...]:
        dim = context.attr("dim")
        if dim not in rules:
            known = ", ".join(map(str, rules))
            context.fail(f"dim: {dim} is none of those that are known here ({known})", "attr:dim")
        stated, weight = ([axis.size for axis in context.params[role]] for role in ("magnitude", "weight"))
        wanted = [size if axis == dim else 1 for axis, size in enumerate(weight)]
        if len(weight) == rank and stated != wanted:
            context.fail(f"{context.node.params['magnitude']} {stated} should be {wanted} for a weight of {weight}")
        return rules[dim](context)

    return rule


def _linear_rule() -> RuleFunction:
    plain = notation(
        "... i, o i, o one1, o? -> ... o",
        ("weight", "magnitude", "bias"),
        effects={"i": READ},
        scaled={"weight": "o"},
    )
    return _by_dim(2, {0: plain})


def _conv_rule(dims: int) -> RuleFunction:
    """A norm for each made unit, or for each tap of one kernel axis, over all that is read and made."""
    rank = dims + 2
    each = Also("magnitude", _ones(rank, 0, "(groups filters)"), {"channels": READ}, ("groups", "filters"))
    rules = {0: conv_rule(dims, each)}
    for axis, letter in enumerate("xyz"[:dims], 2):
        over = {"channels": READ, "groups": MADE, "filters": MADE}
        rules[axis] = conv_rule(dims, Also("magnitude", _ones(rank, axis, f"k{letter}"), over))
    return _by_dim(rank, rules)


def _transposed_rule(dims: int) -> RuleFunction:
    """A norm for each unit that is read, over those that are made of it."""
    scaled = ("groups", "channels")
    each = Also("magnitude", _ones(dims + 2, 0, "(groups channels)"), {"filters": MADE}, scaled)
    return _by_dim(dims + 2, {0: transposed_rule(dims, each)})


# -- standardised weights ----------------------------------------------------------------------------


def _standardized(plain: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """(weight - mean) / sqrt(variance + eps), over all but axis 0, times the gain and its scale."""

    def run(call: Call) -> Any:
        weight = call.params["weight"]
        others = list(range(1, weight.dim()))
        centred = weight - weight.mean(others, keepdim=True)
        weight = centred / (centred.square().mean(others, keepdim=True) + call.attrs["eps"]).sqrt()
        weight = weight * call.attrs["gain_scale"]
        if "gain" in call.params:
            weight = weight * call.params["gain"]
        return _with_weight(call, weight, plain)

    return run


def _standardized_rule(dims: int) -> RuleFunction:
    pattern, over = f"{_ones(dims + 2, 0, '(groups filters)')}?", {"channels": STANDARDIZED}
    alone = conv_rule(dims, Also("gain", pattern, over))
    gained = conv_rule(dims, Also("gain", pattern, over, ("groups", "filters")))

    def rule(context: Context) -> tuple[Value, ...]:
        if "gain" not in context.params:
            return alone(context)
        stated, made = [axis.size for axis in context.params["gain"]], context.params["weight"][0].size
        if stated != [made, *[1] * (dims + 1)]:
            context.fail(f"{context.node.params['gain']} {stated} should be {[made, *[1] * (dims + 1)]}")
        return gained(context)

    return rule


# ------------------------------------------------------------------------------------------------------

_NORMED = (Param("weight"), Param("magnitude", "mean"), Param("bias", "zero", optional=True, grows=True))
_STANDARD = (Param("weight"), Param("gain", "mean", optional=True), Param("bias", "zero", optional=True, grows=True))
_DIM = {"dim": Attr(0, INT)}
_WEIGHT_NORM = (
    "its weight is `weight` over its norm, times `magnitude`; the norm is over all axes but `dim` (weight_norm)."
)

OPS = (
    Op(
        name="weight_norm_linear",
        rule=_linear_rule(),
        run=_normed(apply_linear),
        params=_NORMED,
        attrs=_DIM,
        consumes_axis=-1,
        multiples="any",
        derives=True,
        doc=f"As linear; {_WEIGHT_NORM}",
    ),
    *(
        op
        for dims in (1, 2, 3)
        for op in (
            Op(
                name=f"weight_norm_conv{dims}d",
                rule=_conv_rule(dims),
                run=_normed(run_of(dims)),
                params=_NORMED,
                attrs={**ATTRS, **_DIM},
                consumes_axis=1,
                fresh="zero",
                multiples=lambda node, _: "none" if node.attrs.get("dim") else "any",
                derives=True,
                doc=f"As conv{dims}d; {_WEIGHT_NORM}",
            ),
            Op(
                name=f"weight_norm_conv_transpose{dims}d",
                rule=_transposed_rule(dims),
                run=_normed(run_transposed(dims)),
                params=_NORMED,
                attrs={**TRANSPOSED_ATTRS, **_DIM},
                consumes_axis=1,
                fresh="zero",
                derives=True,
                doc=f"As conv_transpose{dims}d; {_WEIGHT_NORM}",
            ),
            Op(
                name=f"standardized_conv{dims}d",
                rule=_standardized_rule(dims),
                run=_standardized(run_of(dims)),
                params=_STANDARD,
                attrs={**ATTRS, "eps": Attr(1e-6, NUMBER), "gain_scale": Attr(1.0, NUMBER)},
                consumes_axis=1,
                fresh="zero",
                multiples=lambda node, _: "any" if "gain" in node.params else "none",
                derives=True,
                doc=f"As conv{dims}d; each filter's weights are less their mean, over their standard deviation, times "
                "the gain.",
            ),
        )
    ),
)
