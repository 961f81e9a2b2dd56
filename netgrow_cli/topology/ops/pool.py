"""Pooling, upsampling and padding: operations on positions that leave the channels alone (padding may add some)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import CannotAlign, Fixed, Layout, concat, product
from netgrow_cli.topology.ops import bounds
from netgrow_cli.topology.ops.base import (
    BOOL,
    INTS,
    NUMBER,
    REQUIRED,
    TEXT,
    Attr,
    Call,
    Multiples,
    Op,
    several,
    spatial,
)
from netgrow_cli.topology.rule import Context, RuleFunction, Value


def _channels_first(context: Context, dims: int, sizes: list[int]) -> tuple[Value, ...]:
    source = context.inputs[0]
    kept = source.axes[: len(source.axes) - dims]
    for axis in source.axes[len(kept) :]:
        context.layouts.freeze(axis, "positions")
    if any(size < 1 for size in sizes):
        context.fail(f"nothing is left of an input of {list(source.shape)}")
    return (Value((*kept, *(Fixed(size, "positions") for size in sizes)), source.unit_axis),)


def _need(context: Context, dims: int, most: int | None = None) -> None:
    """Check that there are as many axes as it takes; most: no more than these in front of the positions."""
    ahead = len(context.inputs[0].axes) - dims
    if ahead < 1 or (most is not None and ahead > most):
        context.fail(
            f"it works on {dims} axes of positions behind the channels; its input has shape "
            f"{list(context.inputs[0].shape)}"
        )


def _window_rule(dims: int, dilated: bool) -> RuleFunction:
    def rule(context: Context) -> tuple[Value, ...]:
        _need(context, dims, 2)
        kernel = spatial(context, "kernel_size", dims, 1)
        stride = spatial(context, "stride", dims, 1) if context.attr("stride") is not None else kernel
        padding = spatial(context, "padding", dims, 0)
        dilation = spatial(context, "dilation", dims, 1) if dilated else (1,) * dims
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            context.fail(f"padding: {list(padding)} is more than half of the window {list(kernel)}", "attr:padding")
        sizes = []
        for n in range(dims):
            size = context.inputs[0].axes[n - dims].size + 2 * padding[n]
            steps = (size - dilation[n] * (kernel[n] - 1) - 1) / stride[n]
            count = (math.ceil(steps) if context.attr("ceil_mode") else math.floor(steps)) + 1
            # torch drops a last window that would start in the padding behind the input.
            if context.attr("ceil_mode") and (count - 1) * stride[n] >= size - padding[n]:
                count -= 1
            sizes.append(count)
        return _channels_first(context, dims, sizes)

    return rule


def _window(name: str, settings: tuple[str, ...]) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        keywords = {key: call.attrs[key] for key in settings}
        return getattr(call.functional, name)(call.inputs[0], **keywords)

    return run


def _adaptive_rule(dims: int) -> RuleFunction:
    def rule(context: Context) -> tuple[Value, ...]:
        _need(context, dims, 2)
        return _channels_first(context, dims, list(spatial(context, "output_size", dims, 1)))

    return rule


def _adaptive(name: str, dims: int) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        return getattr(call.functional, name)(call.inputs[0], several(call.attrs["output_size"], dims))

    return run


def _upsample_rule(context: Context) -> tuple[Value, ...]:
    dims = len(context.inputs[0].axes) - 2
    if dims < 1:
        context.fail(f"it needs positions behind batch and channels; its input is {list(context.inputs[0].shape)}")
    factor = spatial(context, "scale_factor", dims, 1)
    sizes = [context.inputs[0].axes[2 + n].size * factor[n] for n in range(dims)]
    return _channels_first(context, dims, sizes)


def _upsample(call: Call) -> Any:
    align = call.attrs["align_corners"] if call.attrs["mode"] not in ("nearest", "area") else None
    factor = tuple(float(number) for number in several(call.attrs["scale_factor"], call.inputs[0].dim() - 2))
    return call.functional.interpolate(
        call.inputs[0], scale_factor=factor, mode=call.attrs["mode"], align_corners=align
    )


def _pad_rule(context: Context) -> tuple[Value, ...]:
    amounts = list(context.attr("padding"))
    source, dims = context.inputs[0], len(amounts) // 2
    if not amounts or len(amounts) % 2 or not all(isinstance(amount, int) for amount in amounts):
        context.fail(f"padding: {amounts} should be two numbers for each axis, the last axis first", "attr:padding")
    _need(context, dims)
    axes = list(source.axes)
    for number in range(dims):
        before, after = amounts[2 * number : 2 * number + 2]
        place = len(axes) - 1 - number  # torch counts from the last axis backwards
        if before == after == 0:
            continue
        if axes[place].size + before + after < 1:
            context.fail(f"nothing is left of an input of {list(source.shape)}", "attr:padding")
        if place == source.unit_axis and context.attr("mode") == "constant" and min(before, after) >= 0:
            axes[place] = _between(axes[place], before, after, f"{context.node.name} pads units with constants")
            continue
        context.layouts.freeze(axes[place], "positions" if place != source.unit_axis else _padded_units(context))
        axes[place] = Fixed(axes[place].size + before + after, "positions")
    return (Value(tuple(axes), source.unit_axis),)


def _between(units: Layout, before: int, after: int, why: str) -> Layout:
    """Units with constants in front of them and behind (the shortcut of ResNets for CIFAR)."""
    return concat([part for part in (Fixed(before, why), units, Fixed(after, why)) if part.size])


def _padded_units(context: Context) -> str:
    return f"{context.node.name} pads or cuts the units themselves"


def _pad(call: Call) -> Any:
    mode, value = call.attrs["mode"], call.attrs["value"]
    return call.functional.pad(call.inputs[0], list(call.attrs["padding"]), mode=mode, value=value)


def _pad_multiples(node: Node, _: Sequence[bool]) -> Multiples:
    """A number that stands around is the same for all units."""
    return "none" if node.attrs.get("mode", "constant") == "constant" and node.attrs.get("value") else "any"


def _patches(context: Context, extents: Sequence[int]) -> tuple[int, int]:
    """How many places a window has in an image of that size, and how many values it sees in each channel."""
    kernel, stride, dilation = (spatial(context, name, 2, 1) for name in ("kernel_size", "stride", "dilation"))
    padding = spatial(context, "padding", 2, 0)
    counts = [(extents[n] + 2 * padding[n] - dilation[n] * (kernel[n] - 1) - 1) // stride[n] + 1 for n in range(2)]
    if min(counts) < 1:
        context.fail(f"nothing is left of an input of {list(context.inputs[0].shape)}")
    return math.prod(counts), math.prod(kernel)


def _unfold_rule(context: Context) -> tuple[Value, ...]:
    """b c x y -> b (c taps) places."""
    source = context.inputs[0]
    if len(source.axes) != 4:
        context.fail(f"it takes windows out of images (batch, channels, x, y); its input is {list(source.shape)}")
    places, taps = _patches(context, source.shape[2:])
    for axis in source.axes[2:]:
        context.layouts.freeze(axis, "positions")
    grid = product([source.axes[1], Fixed(taps, "places in a window")])
    return (Value((source.axes[0], grid, Fixed(places, "positions")), 1),)


def _fold_rule(context: Context) -> tuple[Value, ...]:
    """b (c taps) places -> b c x y."""
    source, size = context.inputs[0], spatial(context, "output_size", 2, 1)
    places, taps = _patches(context, size)
    if len(source.axes) != 3 or source.axes[1].size % taps or source.axes[2].size != places:
        context.fail(f"it needs (batch, channels times {taps}, {places} places); its input is {list(source.shape)}")
    context.layouts.freeze(source.axes[2], "positions")
    channels = source.axes[1].size // taps
    try:
        kept, inner = context.layouts.factor(source.axes[1], (channels, taps))
        context.layouts.fix(inner, "places in a window")
    except CannotAlign as clash:
        context.layouts.freeze(source.axes[1], f"fold {context.node.name}: {clash}")
        kept = Fixed(channels, f"fold {context.node.name}: {clash}")
    return (Value((source.axes[0], kept, *(Fixed(n, "positions") for n in size)), 1),)


def _folding(name: str) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        return getattr(call.functional, name)(call.inputs[0], **call.attrs)

    return run


_FOLDING = {
    "kernel_size": Attr(REQUIRED, INTS),
    "dilation": Attr(1, INTS),
    "padding": Attr(0, INTS),
    "stride": Attr(1, INTS),
}

_WINDOW = {
    "kernel_size": Attr(REQUIRED, INTS),
    "stride": Attr(None, INTS),
    "padding": Attr(0, INTS),
    "ceil_mode": Attr(False, BOOL),
}
_MAX = {**_WINDOW, "dilation": Attr(1, INTS)}
_AVERAGE = {**_WINDOW, "count_include_pad": Attr(True, BOOL)}

OPS = (
    *(
        op
        for dims in (1, 2, 3)
        for op in (
            Op(
                name=f"max_pool{dims}d",
                rule=_window_rule(dims, dilated=True),
                run=_window(f"max_pool{dims}d", tuple(_MAX)),
                bounds=bounds.fixed(bounds.picks),
                attrs=_MAX,
                fresh="zero",
                multiples="positive",
                doc="The largest of each window.",
            ),
            Op(
                name=f"avg_pool{dims}d",
                rule=_window_rule(dims, dilated=False),
                run=_window(f"avg_pool{dims}d", tuple(_AVERAGE)),
                bounds=bounds.fixed(bounds.adding(bounds.taps)),
                attrs=_AVERAGE,
                fresh="mean",
                multiples="any",
                doc="The mean of each window.",
            ),
            Op(
                name=f"adaptive_avg_pool{dims}d",
                rule=_adaptive_rule(dims),
                run=_adaptive(f"adaptive_avg_pool{dims}d", dims),
                bounds=bounds.fixed(bounds.adding(bounds.positions)),
                attrs={"output_size": Attr(1, INTS)},
                fresh="mean",
                multiples="any",
                doc="Means over windows that give the stated number of positions.",
            ),
            Op(
                name=f"adaptive_max_pool{dims}d",
                rule=_adaptive_rule(dims),
                run=_adaptive(f"adaptive_max_pool{dims}d", dims),
                bounds=bounds.fixed(bounds.picks),
                attrs={"output_size": Attr(1, INTS)},
                fresh="zero",
                multiples="positive",
                doc="Maxima over windows that give the stated number of positions.",
            ),
        )
    ),
    Op(
        name="upsample",
        rule=_upsample_rule,
        run=_upsample,
        bounds=bounds.fixed(bounds.upsampled),
        attrs={
            "scale_factor": Attr(2, INTS),
            "mode": Attr("nearest", TEXT),
            "align_corners": Attr(None, BOOL),
        },
        fresh="mean",
        multiples="any",
        doc="More positions, by a whole factor.",
    ),
    Op(
        name="unfold",
        rule=_unfold_rule,
        run=_folding("unfold"),
        bounds=bounds.fixed(bounds.adding(lambda _: 1)),
        attrs=_FOLDING,
        fresh="zero",
        multiples="any",
        doc="Windows of an image side by side: (batch, channels times taps, places).",
    ),
    Op(
        name="fold",
        rule=_fold_rule,
        run=_folding("fold"),
        bounds=bounds.fixed(bounds.adding(bounds.taps)),
        attrs={"output_size": Attr(REQUIRED, INTS), **_FOLDING},
        fresh="zero",
        multiples="any",
        doc="Windows added back into an image.",
    ),
    Op(
        name="pad",
        rule=_pad_rule,
        run=_pad,
        bounds=bounds.fixed(bounds.padded),
        attrs={
            "padding": Attr(REQUIRED, (list, tuple)),
            "mode": Attr("constant", TEXT),
            "value": Attr(0.0, NUMBER),
        },
        fresh="none",
        multiples=_pad_multiples,
        doc="More positions around, as torch.nn.functional.pad counts them.",
    ),
)
