"""Operations that move and regroup axes: here rules are functions, not notation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from netgrow_cli.topology.layout import CannotAlign, Fixed, Layout, leaves, product
from netgrow_cli.topology.ops import bounds
from netgrow_cli.topology.ops.base import (
    INT,
    REQUIRED,
    Attr,
    Call,
    Op,
    axes_in,
    axis_in,
)
from netgrow_cli.topology.rule import Context, Value


def stated_axis(context: Context, name: str = "axis") -> int:
    """A stated axis, else the one with the units."""
    source, stated = context.inputs[0], context.attr(name)
    if stated is None:
        return source.unit_axis
    return axis_in(context, stated, len(source.axes), name)


def replaced(source: Value, axis: int, layout: Layout) -> Value:
    """A value with another layout in the place of one."""
    return Value((*source.axes[:axis], layout, *source.axes[axis + 1 :]), source.unit_axis, source.integer)


# -- flatten and reshape ---------------------------------------------------------------------------


def _flatten_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    rank = len(source.axes)
    start, end = (axis_in(context, context.attr(name), rank, name) for name in ("start", "end"))
    if start > end:
        context.fail(f"start {context.attr('start')} is behind end {context.attr('end')}", "attr:start")
    axes = (*source.axes[:start], product(source.axes[start : end + 1]), *source.axes[end + 1 :])
    unit = source.unit_axis
    return (Value(axes, unit if unit < start else max(start, unit - (end - start))),)


def _flatten(call: Call) -> Any:
    return call.torch.flatten(call.inputs[0], call.attrs["start"], call.attrs["end"])


def _target_shape(context: Context) -> list[int]:
    source = context.inputs[0].shape
    sizes: list[int] = []
    for position, item in enumerate(context.attr("shape")):
        if not isinstance(item, (int, str)) or isinstance(item, bool) or (isinstance(item, int) and item < -1):
            context.fail(f"shape: {item!r} is neither a size, 0, -1 nor a name from `dims`", "attr:shape")
        if item == 0:
            if position >= len(source):
                context.fail(f"shape keeps axis {position} (0), its input has {len(source)}", "attr:shape")
            sizes.append(source[position])
        else:
            sizes.append(item if item == -1 else context.size(item))
    if sizes.count(-1) > 1:
        context.fail("only one size of `shape` may be -1", "attr:shape")
    known = math.prod(size for size in sizes if size != -1)
    total = math.prod(source)
    if -1 in sizes and known and total % known == 0:
        sizes[sizes.index(-1)] = total // known
    if math.prod(sizes) != total or total == 0:
        context.fail(f"shape {list(context.attr('shape'))} does not hold an input of {list(source)}", "attr:shape")
    return sizes


def regroup(
    context: Context, axes: Sequence[Layout], sizes: Sequence[int], names: Sequence[str | None] | None = None
) -> tuple[Layout, ...]:
    """The axes of a reshape: the least blocks of axes with one product on both sides are regrouped.

    names: what the new axes are called, where the spec says (`heads`).
    """
    result: list[Layout] = []
    ins, outs = list(axes), list(sizes)
    hints = list(names or [None] * len(outs))
    while ins or outs:
        block, target = ([ins.pop(0)] if ins else []), ([outs.pop(0)] if outs else [])
        while math.prod(axis.size for axis in block) != math.prod(target):
            if math.prod(axis.size for axis in block) < math.prod(target):
                block.append(ins.pop(0))
            else:
                target.append(outs.pop(0))
        whole = product(block)
        if not target:
            context.layouts.freeze(whole, f"a single unit, which reshape {context.node.name} drops the axis of")
            continue
        try:
            called, hints = hints[: len(target)], hints[len(target) :]
            result.extend(context.layouts.factor(whole, target, called))
        except CannotAlign as clash:
            why = f"reshape {context.node.name}: {clash}"
            context.layouts.freeze(whole, why)
            result.extend(Fixed(size, why) for size in target)
    return tuple(context.layouts.resolve(axis) for axis in result)


def _reshape_rule(context: Context) -> tuple[Value, ...]:
    source, sizes = context.inputs[0], _target_shape(context)
    stated = list(context.attr("shape"))
    axes = regroup(context, source.axes, sizes, [item if isinstance(item, str) else None for item in stated])
    for position, item in enumerate(stated):
        if isinstance(item, str) or item > 0:
            context.site(f"shape[{position}]", axes[position])
    unit = _unit_after(source, axes)
    return (Value(axes, unit),)


def _unit_after(source: Value, axes: Sequence[Layout]) -> int:
    """The axis that the first of the source's units came to lie on."""
    units = {leaf.id for leaf in leaves(source.axes[source.unit_axis])}
    for position, axis in enumerate(axes):
        if any(leaf.id in units for leaf in leaves(axis)):
            return position
    return min(source.unit_axis, len(axes) - 1)


def _reshape(call: Call) -> Any:
    return call.inputs[0].reshape(call.shape())


# -- permute ---------------------------------------------------------------------------------------


def _permute_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    places = axes_in(context, context.attr("axes"), len(source.axes))
    return (Value(tuple(source.axes[axis] for axis in places), places.index(source.unit_axis)),)


def _transpose_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    rank = len(source.axes)
    first, second = axes_in(context, context.attr("axes"), 2)
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return (Value(tuple(source.axes[axis] for axis in order), order.index(source.unit_axis)),)


def _unsqueeze_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    axis = axis_in(context, context.attr("axis"), len(source.axes) + 1, "axis")
    axes = (*source.axes[:axis], Fixed(1, "an axis of size one"), *source.axes[axis:])
    return (Value(axes, source.unit_axis + (axis <= source.unit_axis)),)


def _squeeze_rule(context: Context) -> tuple[Value, ...]:
    source, axis = context.inputs[0], stated_axis(context)
    if source.axes[axis].size != 1:
        context.fail(f"axis {axis} of its input {list(source.shape)} is not of size 1", "attr:axis")
    context.layouts.freeze(source.axes[axis], f"squeezed away by {context.node.name}")
    axes = (*source.axes[:axis], *source.axes[axis + 1 :])
    return (Value(axes, max(0, source.unit_axis - (axis <= source.unit_axis))),)


_AXIS = {"axis": Attr(None, INT)}

OPS = (
    Op(
        name="flatten",
        rule=_flatten_rule,
        run=_flatten,
        numpy=_reshape,
        bounds=bounds.moves,
        attrs={"start": Attr(1, INT), "end": Attr(-1, INT)},
        fresh="mean",
        multiples="any",
        doc="Axes from `start` to `end` as one.",
    ),
    Op(
        name="reshape",
        rule=_reshape_rule,
        run=_reshape,
        numpy=_reshape,
        bounds=bounds.moves,
        attrs={"shape": Attr(REQUIRED, (list, tuple))},
        fresh="mean",
        multiples="any",
        doc="Regroups axes; 0 keeps an axis, -1 is what remains, a name is a size from `dims`.",
    ),
    Op(
        name="permute",
        rule=_permute_rule,
        run=lambda call: call.inputs[0].permute(*call.attrs["axes"]),
        numpy=lambda call: call.inputs[0].transpose(*call.attrs["axes"]),
        bounds=bounds.moves,
        attrs={"axes": Attr(REQUIRED, (list, tuple))},
        fresh="mean",
        multiples="any",
        doc="Axes in another order.",
    ),
    Op(
        name="transpose",
        rule=_transpose_rule,
        run=lambda call: call.inputs[0].transpose(*call.attrs["axes"]),
        numpy=lambda call: call.inputs[0].swapaxes(*call.attrs["axes"]),
        bounds=bounds.moves,
        attrs={"axes": Attr((-2, -1), (list, tuple))},
        fresh="mean",
        multiples="any",
        doc="Two axes exchanged.",
    ),
    Op(
        name="unsqueeze",
        rule=_unsqueeze_rule,
        run=lambda call: call.inputs[0].unsqueeze(call.attrs["axis"]),
        numpy=_reshape,
        bounds=bounds.moves,
        attrs={"axis": Attr(-1, INT)},
        fresh="mean",
        multiples="any",
        doc="A new axis of size one.",
    ),
    Op(
        name="squeeze",
        rule=_squeeze_rule,
        run=_reshape,
        numpy=_reshape,
        bounds=bounds.moves,
        attrs=_AXIS,
        fresh="mean",
        multiples="any",
        doc="An axis of size one taken away.",
    ),
)
