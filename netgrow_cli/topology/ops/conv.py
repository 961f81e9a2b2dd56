"""Convolutions in one to three dimensions, grouped and depthwise too, and their transposes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.ops import bounds
from netgrow_cli.topology.ops.base import INTS, TEXT, Attr, Call, Op, Param, several, spatial
from netgrow_cli.topology.rule import Context, RuleFunction, notation

_LETTERS = "xyz"
_MODES = ("zeros", "reflect", "replicate", "circular")
ATTRS = {
    "stride": Attr(1, INTS),
    "padding": Attr(0, (*INTS, str)),
    "dilation": Attr(1, INTS),
    "padding_mode": Attr("zeros", TEXT),
    "groups": Attr(None, (int,)),
}
TRANSPOSED_ATTRS = {
    "stride": Attr(1, INTS),
    "padding": Attr(0, INTS),
    "output_padding": Attr(0, INTS),
    "dilation": Attr(1, INTS),
    "groups": Attr(None, (int,)),
}
_PARAMS = (Param("weight"), Param("bias", "zero", optional=True, grows=True))


def _groups(context: Context) -> int:
    """Groups follow from the shapes: channels that come in over channels that one filter reads."""
    channels = context.inputs[0].axes[1].size if len(context.inputs[0].axes) > 1 else 0
    weight = [axis.size for axis in context.params["weight"]]
    reads = weight[1]
    if reads == 0 or channels % reads:
        context.fail(
            f"its input has {channels} channels; {context.node.params['weight']} {weight} reads {reads} in each group",
            "from",
        )
    groups = channels // reads
    stated = context.attr("groups")
    if stated is not None and stated != groups:
        context.fail(
            f"groups: {stated} is stated, but {channels} input channels over {reads} in "
            f"{context.node.params['weight']} make {groups}",
            "attr:groups",
        )
    return groups


def padded(context: Context, dims: int, kernel: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """What a convolution adds before and after each spatial axis."""
    padding = context.attr("padding")
    if padding == "same" and set(spatial(context, "stride", dims, 1)) != {1}:
        context.fail("padding: 'same' goes with stride 1 only", "attr:padding")
    if isinstance(padding, str) and padding not in ("same", "valid"):
        context.fail(f"padding: {padding!r} is neither a number, 'same' nor 'valid'", "attr:padding")
    if context.attr("padding_mode") not in _MODES:
        message = f"padding_mode: {context.attr('padding_mode')!r} is none of {', '.join(_MODES)}"
        context.fail(message, "attr:padding_mode")
    if not isinstance(padding, str):
        spatial(context, "padding", dims, 0)
    return _around(padding, kernel, spatial(context, "dilation", dims, 1))


def _around(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in several(padding, len(kernel)))


def _computed(dims: int) -> Any:
    def computed(context: Context) -> Mapping[str, int]:
        kernel = tuple(axis.size for axis in context.params["weight"][2:])
        stride, dilation = (spatial(context, name, dims, 1) for name in ("stride", "dilation"))
        padding = padded(context, dims, kernel)
        sizes = {}
        for n in range(dims):
            extent = context.inputs[0].axes[2 + n].size + sum(padding[n])
            sizes[f"{_LETTERS[n]}'"] = (extent - dilation[n] * (kernel[n] - 1) - 1) // stride[n] + 1
        return _positive(context, sizes)

    return computed


def _computed_transposed(dims: int) -> Any:
    def computed(context: Context) -> Mapping[str, int]:
        kernel = [axis.size for axis in context.params["weight"][2:]]
        stride, dilation = (spatial(context, name, dims, 1) for name in ("stride", "dilation"))
        padding, more = (spatial(context, name, dims, 0) for name in ("padding", "output_padding"))
        if any(m >= max(s, d) for m, s, d in zip(more, stride, dilation, strict=True)):
            context.fail("output_padding must be smaller than stride or dilation", "attr:output_padding")
        sizes = {}
        for n in range(dims):
            extent = context.inputs[0].axes[2 + n].size
            reach = dilation[n] * (kernel[n] - 1) + more[n] + 1
            sizes[f"{_LETTERS[n]}'"] = (extent - 1) * stride[n] - 2 * padding[n] + reach
        return _positive(context, sizes)

    return computed


def _positive(context: Context, sizes: dict[str, int]) -> dict[str, int]:
    if any(size < 1 for size in sizes.values()):
        shape = context.inputs[0].shape[2:]
        context.fail(f"nothing is left of an input of {list(shape)}; check stride, padding and the input's shape")
    return sizes


def _transposed_groups(context: Context) -> Mapping[str, int]:
    if context.attr("groups") is not None and context.attr("groups") < 1:
        context.fail(f"groups: {context.attr('groups')} should be from 1 up", "attr:groups")
    return {"groups": context.attr("groups") or 1}


@frozen
class Also:
    """A parameter that the weight is computed with.

    name, pattern: as `notation` has them. effects: letters that the weight is computed over as a whole, and the kind
    of effect. scaled: letters that the weight gives a direction only, where this parameter has the size.
    """

    name: str
    pattern: str
    effects: Mapping[str, str]
    scaled: Sequence[str] = ()


def conv_rule(dims: int, also: Also | None = None) -> RuleFunction:
    """The rule of a convolution."""
    space = " ".join(_LETTERS[:dims])
    kernel = " ".join("k" + letter for letter in _LETTERS[:dims])
    after = " ".join(letter + "'" for letter in _LETTERS[:dims])
    plain = notation(
        f"b (groups channels) {space}, (groups filters) channels {kernel}, {_pattern(also)}(groups filters)? "
        f"-> b (groups filters) {after}",
        _names(also),
        sizes=lambda context: {"groups": _groups(context)},
        computed=_computed(dims),
        effects=also.effects if also else None,
        sites={"groups": "groups"},
        scaled={"weight": also.scaled} if also else None,
        data="kernel taps",
    )

    return _of_rank(dims, plain)


def _of_rank(dims: int, plain: RuleFunction) -> RuleFunction:
    def rule(context: Context) -> Any:
        if len(context.params["weight"]) != dims + 2:
            shape = [axis.size for axis in context.params["weight"]]
            context.fail(f"{context.node.params['weight']} {shape} is no kernel of {dims} dimensions")
        return plain(context)

    return rule


def _names(also: Also | None) -> tuple[str, ...]:
    return ("weight", "bias") if also is None else ("weight", also.name, "bias")


def _pattern(also: Also | None) -> str:
    return "" if also is None else f"{also.pattern}, "


def transposed_rule(dims: int, also: Also | None = None) -> RuleFunction:
    """The rule of a transposed convolution."""
    space = " ".join(_LETTERS[:dims])
    kernel = " ".join("k" + letter for letter in _LETTERS[:dims])
    after = " ".join(letter + "'" for letter in _LETTERS[:dims])
    plain = notation(
        f"b (groups channels) {space}, (groups channels) filters {kernel}, {_pattern(also)}(groups filters)? "
        f"-> b (groups filters) {after}",
        _names(also),
        sizes=_transposed_groups,
        computed=_computed_transposed(dims),
        effects=also.effects if also else None,
        sites={"groups": "groups"},
        scaled={"weight": also.scaled} if also else None,
        data="kernel taps",
    )
    return _of_rank(dims, plain)


def patches(call: Call, kernel: Sequence[int]) -> Any:
    """What a convolution multiplies its kernel with, as it pads: batch, positions, channels, taps."""
    dims, x = len(kernel), call.inputs[0]
    stride, dilation = (several(call.attrs[name], dims) for name in ("stride", "dilation"))
    x = _padded(call, kernel, "constant" if call.attrs["padding_mode"] == "zeros" else call.attrs["padding_mode"])
    for n in range(dims):
        x = x.unfold(2 + n, dilation[n] * (kernel[n] - 1) + 1, stride[n])[..., :: dilation[n]]
    axes = range(2, 2 + dims)
    x = x.permute(0, *axes, 1, *(dims + axis for axis in axes))
    return x.flatten(-dims).flatten(1, dims)


def _padded(call: Call, kernel: Sequence[int], mode: str) -> Any:
    around = _around(call.attrs["padding"], kernel, several(call.attrs["dilation"], len(kernel)))
    both = [amount for pair in reversed(around) for amount in pair]
    return call.functional.pad(call.inputs[0], both, mode=mode) if any(both) else call.inputs[0]


def run_of(dims: int) -> Callable[[Call], Any]:
    """How a convolution runs."""

    def run(call: Call) -> Any:
        functional, x, weight = call.functional, call.inputs[0], call.params["weight"]
        padding = call.attrs["padding"]
        if call.attrs["padding_mode"] != "zeros":
            x, padding = _padded(call, weight.shape[2:], call.attrs["padding_mode"]), 0
        groups = x.shape[1] // weight.shape[1]
        convolve = getattr(functional, f"conv{dims}d")
        return convolve(
            x,
            weight,
            call.params.get("bias"),
            several(call.attrs["stride"], dims),
            padding if isinstance(padding, str) else several(padding, dims),
            several(call.attrs["dilation"], dims),
            groups,
        )

    return run


def run_transposed(dims: int) -> Callable[[Call], Any]:
    """How a transposed convolution runs."""

    def run(call: Call) -> Any:
        names = ("stride", "padding", "output_padding")
        stride, padding, more = (several(call.attrs[name], dims) for name in names)
        groups = call.outputs[0].axes[1].size // call.params["weight"].shape[1]
        convolve = getattr(call.functional, f"conv_transpose{dims}d")
        dilation = several(call.attrs["dilation"], dims)
        bias = call.params.get("bias")
        return convolve(call.inputs[0], call.params["weight"], bias, stride, padding, more, groups, dilation)

    return run


OPS = tuple(
    op
    for dims in (1, 2, 3)
    for op in (
        Op(
            name=f"conv{dims}d",
            rule=conv_rule(dims),
            run=run_of(dims),
            bounds=bounds.fixed(bounds.weighted(made=0)),
            params=_PARAMS,
            attrs=ATTRS,
            consumes_axis=1,
            fresh="zero",
            multiples="any",
            doc="Convolution; groups follow from the shapes, depthwise is one channel a group.",
        ),
        Op(
            name=f"conv_transpose{dims}d",
            rule=transposed_rule(dims),
            run=run_transposed(dims),
            bounds=bounds.fixed(bounds.weighted(made=1)),
            params=_PARAMS,
            attrs=TRANSPOSED_ATTRS,
            consumes_axis=1,
            fresh="zero",
            multiples="any",
            doc="Transposed convolution; groups must be stated where there are any.",
        ),
    )
)
