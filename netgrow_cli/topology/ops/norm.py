"""Normalisations. Those that see a whole width say so by an effect; batch_norm treats each unit alone."""

from __future__ import annotations

import functools
from typing import Any

from netgrow_cli.topology.layout import CannotAlign
from netgrow_cli.topology.ops.base import INT, NUMBER, REQUIRED, Attr, Call, Op, Param, axis_in
from netgrow_cli.topology.rule import Context, RuleFunction, Value, notation

_GAIN = (Param("weight", "one", optional=True), Param("bias", "zero", optional=True, grows=True))
_STATISTICS = (Param("running_mean", "zero", grows=True), Param("running_var", "one"))


def _batch_norm(call: Call) -> Any:
    p = call.params
    return call.functional.batch_norm(
        call.inputs[0],
        p["running_mean"],
        p["running_var"],
        p.get("weight"),
        p.get("bias"),
        False,
        0.0,
        call.attrs["eps"],
    )


def _over_last(kind: str, names: tuple[str, ...]) -> Any:
    """The rule of a norm over the last axis, or over the last `dims` where its gain has more than one."""
    letters = "cdefg"

    @functools.cache
    def over(count: int) -> RuleFunction:
        axes = " ".join(letters[:count])
        given = ", ".join(f"{axes}?" for _ in names)
        # Over several axes a unit that carries the mean of the others still adds to the variance.
        seen = kind if count == 1 or kind == "rms_norm" else f"{kind} over {count} axes"
        effects = dict.fromkeys(letters[:count], seen)
        sites = dict.fromkeys(letters[:count], "normalized_shape")
        return notation(f"... {axes}, {given} -> ... {axes}", names, effects=effects, sites=sites)

    def rule(context: Context) -> tuple[Value, ...]:
        gain = context.params.get(names[0])
        count = len(gain) if gain is not None else context.attr("dims")
        if not 1 <= count <= min(len(letters), len(context.inputs[0].axes)):
            context.fail(f"it cannot normalise {count} axes of its input {list(context.inputs[0].shape)}")
        return over(count)(context)

    return rule


def _layer_norm(call: Call) -> Any:
    weight = call.params.get("weight")
    count = weight.dim() if weight is not None else call.attrs["dims"]
    shape = call.inputs[0].shape[-count:]
    return call.functional.layer_norm(call.inputs[0], shape, weight, call.params.get("bias"), call.attrs["eps"])


def _rms_norm(call: Call) -> Any:
    x, weight = call.inputs[0], call.params.get("weight")
    count = weight.dim() if weight is not None else call.attrs["dims"]
    axes = tuple(range(-count, 0))
    out = x * call.torch.rsqrt(x.pow(2).mean(axes, keepdim=True) + call.attrs["eps"])
    return out if weight is None else out * (weight + call.attrs["offset"])


def _seen_positions(context: Context) -> None:
    """Axes behind the channels are normalised over too; where they hold units, that is an effect."""
    for axis, layout in enumerate(context.inputs[0].axes[2:], 2):
        context.effect(context.node.op, layout, axis)


def _need_channels(context: Context) -> None:
    if len(context.inputs[0].axes) < 2:
        context.fail(f"it needs an axis of channels behind the batch; its input is {list(context.inputs[0].shape)}")


def _instance_norm_rule(context: Context) -> tuple[Value, ...]:
    names = ("weight", "bias", "running_mean", "running_var")
    if "running_mean" not in context.params:
        _seen_positions(context)
    return notation("b c ..., c?, c?, c?, c? -> b c ...", names)(context)


def _group_norm_rule(context: Context) -> tuple[Value, ...]:
    _need_channels(context)
    channels, groups = context.inputs[0].axes[1].size, context.size(context.attr("groups"))
    if groups < 1 or channels % groups:
        context.fail(f"{channels} channels do not fall into {groups} groups", "attr:groups")
    rule = notation(
        "b (groups channels) ..., (groups channels)?, (groups channels)? -> b (groups channels) ...",
        ("weight", "bias"),
        sizes=lambda _: {"groups": groups},
        sites={"groups": "groups"},
    )
    out = rule(context)
    # What is normalised together: the channels of one group, and all positions.
    try:
        seen = context.layouts.factor(context.inputs[0].axes[1], (groups, channels // groups))[1]
    except CannotAlign:  # frozen by now
        seen = context.inputs[0].axes[1]
    context.effect("group_norm", seen, 1)
    _seen_positions(context)
    return out


def _group_norm(call: Call) -> Any:
    weight, bias = call.params.get("weight"), call.params.get("bias")
    return call.torch.group_norm(call.inputs[0], int(call.attrs["groups"]), weight, bias, call.attrs["eps"])


def _instance_norm(call: Call) -> Any:
    p = call.params
    given = p.get("running_mean"), p.get("running_var"), p.get("weight"), p.get("bias")
    return call.functional.instance_norm(call.inputs[0], *given, "running_mean" not in p, 0.0, call.attrs["eps"])


def _softmax_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    axis = axis_in(context, context.attr("axis"), len(source.axes), "axis")
    context.effect("softmax", source.axes[axis], axis)
    return (Value(source.axes, source.unit_axis),)


def _softmax(kind: str) -> Any:
    def run(call: Call) -> Any:
        return getattr(call.functional, kind)(call.inputs[0], dim=call.attrs["axis"])

    return run


def _normalize(call: Call) -> Any:
    return call.functional.normalize(call.inputs[0], p=call.attrs["p"], dim=call.attrs["axis"], eps=call.attrs["eps"])


def _normalize_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    axis = axis_in(context, context.attr("axis"), len(source.axes), "axis")
    context.effect("normalize", source.axes[axis], axis)
    return (Value(source.axes, source.unit_axis),)


def _local_response_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    _need_channels(context)
    context.layouts.freeze(source.axes[1], "local_response_norm mixes neighbouring channels")
    return (Value(tuple(source.axes), source.unit_axis),)


def _local_response(call: Call) -> Any:
    a = call.attrs
    return call.functional.local_response_norm(call.inputs[0], int(a["size"]), a["alpha"], a["beta"], a["k"])


OPS = (
    Op(
        name="batch_norm",
        rule=notation("b c ..., c?, c?, c, c -> b c ...", ("weight", "bias", "running_mean", "running_var")),
        run=_batch_norm,
        params=(*_GAIN, *_STATISTICS),
        attrs={"eps": Attr(1e-5, NUMBER)},
        fresh="zero",
        multiples="any",
        doc="As in evaluation: running statistics, each channel alone.",
    ),
    Op(
        name="instance_norm",
        rule=_instance_norm_rule,
        run=_instance_norm,
        params=(
            *_GAIN,
            Param("running_mean", "zero", optional=True),
            Param("running_var", "one", optional=True),
        ),
        attrs={"eps": Attr(1e-5, NUMBER)},
        fresh="zero",
        doc="Each channel of each sample alone.",
    ),
    Op(
        name="layer_norm",
        rule=_over_last("layer_norm", ("weight", "bias")),
        run=_layer_norm,
        params=_GAIN,
        attrs={"eps": Attr(1e-5, NUMBER), "dims": Attr(1, INT)},
        fresh="normalises",
        doc="Mean 0 and variance 1 over the last axis.",
    ),
    Op(
        name="rms_norm",
        rule=_over_last("rms_norm", ("weight",)),
        run=_rms_norm,
        params=_GAIN[:1],
        attrs={"eps": Attr(1e-6, NUMBER), "dims": Attr(1, INT), "offset": Attr(0.0, NUMBER)},
        fresh="zero",
        doc="Root mean square 1 over the last axis; `offset: 1` where the gain is stored as 1 + w.",
    ),
    Op(
        name="group_norm",
        rule=_group_norm_rule,
        run=_group_norm,
        params=_GAIN,
        attrs={"eps": Attr(1e-5, NUMBER), "groups": Attr(REQUIRED, (int, str))},
        doc="Mean 0 and variance 1 over each group of channels and all positions.",
    ),
    *(
        Op(
            name=kind,
            rule=_softmax_rule,
            run=_softmax(kind),
            attrs={"axis": Attr(-1, INT)},
            doc="Normalises over an axis; over a width that is an effect.",
        )
        for kind in ("softmax", "log_softmax", "softmin")
    ),
    Op(
        name="gumbel_softmax",
        rule=_softmax_rule,
        run=lambda call: call.functional.softmax(call.inputs[0] / call.attrs["tau"], dim=call.attrs["axis"]),
        attrs={"axis": Attr(-1, INT), "tau": Attr(1.0, NUMBER)},
        doc="As softmax of x / tau: without its noise, so that two runs can be compared.",
    ),
    Op(
        name="normalize",
        rule=_normalize_rule,
        run=_normalize,
        attrs={"axis": Attr(1, INT), "p": Attr(2.0, NUMBER), "eps": Attr(1e-12, NUMBER)},
        fresh="zero",
        doc="Divides by the norm over an axis.",
    ),
    Op(
        name="local_response_norm",
        rule=_local_response_rule,
        run=_local_response,
        attrs={
            "size": Attr(REQUIRED, INT),
            "alpha": Attr(1e-4, NUMBER),
            "beta": Attr(0.75, NUMBER),
            "k": Attr(1.0, NUMBER),
        },
        doc="AlexNet's norm over neighbouring channels, which freezes their order.",
    ),
)
