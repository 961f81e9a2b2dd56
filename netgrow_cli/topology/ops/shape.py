"""Operations that move, cut, join and regroup axes: here rules are functions, not notation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from netgrow_cli.topology.layout import CannotAlign, Fixed, Layout, SizeMismatch, concat, leaves, product
from netgrow_cli.topology.ops.base import (
    BOOL,
    INT,
    INTS,
    NUMBER,
    REQUIRED,
    Attr,
    Call,
    Fresh,
    Multiples,
    Op,
    axes_in,
    axis_in,
)
from netgrow_cli.topology.rule import Context, Value


def _axis(context: Context, name: str = "axis") -> int:
    """A stated axis, else the one with the units."""
    source, stated = context.inputs[0], context.attr(name)
    if stated is None:
        return source.unit_axis
    return axis_in(context, stated, len(source.axes), name)


def _replaced(source: Value, axis: int, layout: Layout) -> Value:
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
    source, axis = context.inputs[0], _axis(context)
    if source.axes[axis].size != 1:
        context.fail(f"axis {axis} of its input {list(source.shape)} is not of size 1", "attr:axis")
    context.layouts.freeze(source.axes[axis], f"squeezed away by {context.node.name}")
    axes = (*source.axes[:axis], *source.axes[axis + 1 :])
    return (Value(axes, max(0, source.unit_axis - (axis <= source.unit_axis))),)


# -- joining and cutting ---------------------------------------------------------------------------


def _cat_rule(context: Context) -> tuple[Value, ...]:
    axis = _axis(context)
    first = context.inputs[0]
    for value in context.inputs[1:]:
        if len(value.axes) != len(first.axes):
            context.fail(f"its operands have shapes {list(first.shape)} and {list(value.shape)}", "from")
        for position, (one, other) in enumerate(zip(first.axes, value.axes, strict=True)):
            if position == axis:
                continue
            try:
                context.layouts.unify(one, other)
            except SizeMismatch:
                shapes = f"{list(first.shape)} and {list(value.shape)}"
                context.fail(f"its operands have shapes {shapes}, which differ at axis {position}", "from")
    joined = concat([value.axes[axis] for value in context.inputs])
    _check_ranges(context, axis)
    return (_replaced(first, axis, context.layouts.resolve(joined)),)


def _check_ranges(context: Context, axis: int) -> None:
    """Ranges that a spec states for the sources of a layer must be the sources' own sizes."""
    ranges = context.attr("ranges")
    lead: list[Layout] = []
    for position, (start, stop) in enumerate(ranges or ()):
        layout = context.inputs[position].axes[axis]
        if stop - start != layout.size:
            context.fail(
                f"reads {start}:{stop} ({stop - start} units) from {str(context.node.inputs[position])!r}, "
                f"which has {layout.size}",
                f"range:{position}",
            )
        context.site(f"range:{position}", layout, lead, in_code=False)
        lead = [*lead, layout]


def _cat(call: Call) -> Any:
    axis = call.attrs["axis"]
    return call.torch.cat(list(call.inputs), call.outputs[0].unit_axis if axis is None else axis)


def _pieces(context: Context, axis: int, cuts: Sequence[int]) -> tuple[Layout, ...]:
    """Cut an axis, or freeze it where it cannot be cut."""
    layout = context.inputs[0].axes[axis]
    try:
        return context.layouts.cut(layout, cuts)
    except CannotAlign as clash:
        why = f"{context.node.op} {context.node.name}: {clash}"
        context.layouts.freeze(layout, why)
        bounds = [0, *cuts, layout.size]
        return tuple(Fixed(b - a, why) for a, b in itertools.pairwise(bounds))


def _slice_rule(context: Context) -> tuple[Value, ...]:
    source, axis = context.inputs[0], _axis(context)
    size = source.axes[axis].size
    start, stop = context.attr("start") or 0, context.attr("stop")
    stop = size if stop is None else stop
    if not 0 <= start < stop <= size:
        context.fail(f"the range {start}:{stop} is not inside its source, which has {size} units here", "range")
    cuts = [cut for cut in (start, stop) if 0 < cut < size]
    pieces = list(_pieces(context, axis, cuts))
    lead = [pieces.pop(0)] if start > 0 else []
    if "attr:start" in context.node.marks or "attr:stop" in context.node.marks:
        # Stated as two settings of the layer, not as a range in a reference.
        context.site("start", concat(lead))
        if context.attr("stop") is not None:
            context.site("stop", concat([*lead, pieces[0]]))
    else:
        context.site("range", pieces[0], lead)
    return (_replaced(source, axis, pieces[0]),)


def _slice(call: Call) -> Any:
    axis = call.outputs[0].unit_axis if call.attrs["axis"] is None else call.attrs["axis"]
    start = call.attrs["start"] or 0
    return call.inputs[0].narrow(axis, start, call.shape()[axis])


def _split_rule(context: Context) -> tuple[Value, ...]:
    source, axis = context.inputs[0], _axis(context)
    sizes, total = context.attr("sizes"), source.axes[axis].size
    if isinstance(sizes, int):
        if sizes < 1:
            context.fail(f"sizes: {sizes} should be from 1 up", "attr:sizes")
        parts = [sizes] * (total // sizes) + ([total % sizes] if total % sizes else [])
    else:
        if not all(isinstance(size, (int, str)) for size in sizes):
            context.fail(f"sizes: {sizes!r} should be numbers or names from `dims`", "attr:sizes")
        parts = [context.size(size) for size in sizes]
        if any(part < 1 for part in parts):
            context.fail(f"sizes: {parts} should be from 1 up", "attr:sizes")
    if sum(parts) != total:
        context.fail(f"sizes {parts} add up to {sum(parts)}, its input has {total}", "attr:sizes")
    pieces = _pieces(context, axis, [sum(parts[:count]) for count in range(1, len(parts))])
    if isinstance(sizes, int):
        context.site("sizes", pieces[0])
        context.tie([piece for piece in pieces if piece.size == sizes], f"split {context.node.name} by one size")
    else:
        for position, piece in enumerate(pieces):
            context.site(f"sizes[{position}]", piece)
    return tuple(_replaced(source, axis, piece) for piece in pieces)


def _chunk_rule(context: Context) -> tuple[Value, ...]:
    source, axis = context.inputs[0], _axis(context)
    count, total = context.attr("chunks"), source.axes[axis].size
    if count < 1:
        context.fail(f"chunks: {count} should be from 1 up", "attr:chunks")
    each = total // count
    if total % count:
        context.fail(f"{total} units do not fall into {count} equal chunks", "attr:chunks")
    pieces = _pieces(context, axis, [each * n for n in range(1, count)])
    context.tie(pieces, f"chunk {context.node.name} cuts into {count} equal parts")
    return tuple(_replaced(source, axis, piece) for piece in pieces)


def _cut_by_layout(call: Call) -> Any:
    axis = call.outputs[0].unit_axis if call.attrs["axis"] is None else call.attrs["axis"]
    return call.torch.split(call.inputs[0], [value.shape[axis] for value in call.outputs], axis)


def _glu_rule(context: Context) -> tuple[Value, ...]:
    source, axis = context.inputs[0], _axis(context)
    size = source.axes[axis].size
    if size % 2:
        context.fail(f"{size} units do not fall into two halves", "from")
    halves = _pieces(context, axis, [size // 2])
    context.layouts.unify(halves[0], halves[1])
    return (_replaced(source, axis, context.layouts.resolve(halves[0])),)


def _glu(call: Call) -> Any:
    axis = call.outputs[0].unit_axis if call.attrs["axis"] is None else call.attrs["axis"]
    return call.functional.glu(call.inputs[0], axis)


# -- sums over axes --------------------------------------------------------------------------------


def _reduce_axes(context: Context) -> list[int]:
    source, stated = context.inputs[0], context.attr("axes")
    if stated is None:
        return [n for n in range(1, len(source.axes)) if n != source.unit_axis]
    return sorted(axes_in(context, stated))


def _reduce_rule(context: Context) -> tuple[Value, ...]:
    source, gone = context.inputs[0], _reduce_axes(context)
    for axis in gone:
        context.effect(context.node.op, source.axes[axis], axis)
    if context.attr("keepdim"):
        one = Fixed(1, "an axis of size one")
        axes = tuple(one if n in gone else axis for n, axis in enumerate(source.axes))
        return (Value(axes, source.unit_axis),)
    axes = tuple(axis for n, axis in enumerate(source.axes) if n not in gone)
    unit = source.unit_axis - sum(1 for axis in gone if axis < source.unit_axis)
    return (Value(axes, max(0, min(unit, len(axes) - 1))),)


def _reduce(name: str) -> Any:
    def run(call: Call) -> Any:
        x, stated = call.inputs[0], call.attrs["axes"]
        if stated is None:
            stated = [n for n in range(1, x.dim()) if n != call.unit_axis]
        axes = stated if isinstance(stated, (list, tuple)) else [stated]
        if not axes:
            return x
        return getattr(call.torch, name)(x, dim=tuple(axes), keepdim=call.attrs["keepdim"])

    return run


def _vector_norm(call: Call) -> Any:
    x, stated = call.inputs[0], call.attrs["axes"]
    axes = [n for n in range(1, x.dim()) if n != call.unit_axis] if stated is None else stated
    return call.torch.linalg.vector_norm(x, call.attrs["ord"], axes, call.attrs["keepdim"])


_AXIS = {"axis": Attr(None, INT)}
_REDUCE = {"axes": Attr(None, INTS), "keepdim": Attr(False, BOOL)}

_REDUCTIONS: tuple[tuple[str, Fresh, Multiples, str], ...] = (
    ("mean", "mean", "any", "Mean over positions, or over stated axes."),
    ("sum", "mean", "any", "Sum over positions, or over stated axes."),
    ("amax", "zero", "positive", "Largest over positions, or over stated axes."),
    ("amin", "zero", "positive", "Smallest over positions, or over stated axes."),
)

OPS = (
    Op(
        name="flatten",
        rule=_flatten_rule,
        run=_flatten,
        attrs={"start": Attr(1, INT), "end": Attr(-1, INT)},
        fresh="mean",
        multiples="any",
        doc="Axes from `start` to `end` as one.",
    ),
    Op(
        name="reshape",
        rule=_reshape_rule,
        run=_reshape,
        attrs={"shape": Attr(REQUIRED, (list, tuple))},
        fresh="mean",
        multiples="any",
        doc="Regroups axes; 0 keeps an axis, -1 is what remains, a name is a size from `dims`.",
    ),
    Op(
        name="permute",
        rule=_permute_rule,
        run=lambda call: call.inputs[0].permute(*call.attrs["axes"]),
        attrs={"axes": Attr(REQUIRED, (list, tuple))},
        fresh="mean",
        multiples="any",
        doc="Axes in another order.",
    ),
    Op(
        name="transpose",
        rule=_transpose_rule,
        run=lambda call: call.inputs[0].transpose(*call.attrs["axes"]),
        attrs={"axes": Attr((-2, -1), (list, tuple))},
        fresh="mean",
        multiples="any",
        doc="Two axes exchanged.",
    ),
    Op(
        name="unsqueeze",
        rule=_unsqueeze_rule,
        run=lambda call: call.inputs[0].unsqueeze(call.attrs["axis"]),
        attrs={"axis": Attr(-1, INT)},
        fresh="mean",
        multiples="any",
        doc="A new axis of size one.",
    ),
    Op(
        name="squeeze",
        rule=_squeeze_rule,
        run=lambda call: call.inputs[0].reshape(call.shape()),
        attrs=_AXIS,
        fresh="mean",
        multiples="any",
        doc="An axis of size one taken away.",
    ),
    Op(
        name="cat",
        rule=_cat_rule,
        run=_cat,
        attrs={**_AXIS, "ranges": Attr(None, (tuple,))},
        inputs=(1, None),
        fresh="mean",
        multiples="any",
        doc="Operands one after the other along the units, or along `axis`.",
    ),
    Op(
        name="slice",
        rule=_slice_rule,
        run=_slice,
        attrs={**_AXIS, "start": Attr(0, INT), "stop": Attr(None, INT)},
        fresh="mean",
        multiples="any",
        doc="A range of the units, or of `axis`.",
    ),
    Op(
        name="split",
        rule=_split_rule,
        run=_cut_by_layout,
        attrs={**_AXIS, "sizes": Attr(REQUIRED, INTS)},
        multiple=True,
        fresh="mean",
        multiples="any",
        doc="Cut by stated sizes, or by one size repeated; read as name[0], name[1].",
    ),
    Op(
        name="chunk",
        rule=_chunk_rule,
        run=_cut_by_layout,
        attrs={**_AXIS, "chunks": Attr(REQUIRED, INT)},
        multiple=True,
        fresh="mean",
        multiples="any",
        doc="Cut into equal parts; read as name[0], name[1].",
    ),
    Op(
        name="glu",
        rule=_glu_rule,
        run=_glu,
        attrs=_AXIS,
        fresh="zero",
        doc="First half times sigmoid of the second.",
    ),
    Op(
        name="vector_norm",
        rule=_reduce_rule,
        run=_vector_norm,
        attrs={**_REDUCE, "ord": Attr(2.0, NUMBER)},
        fresh="zero",
        multiples="positive",
        doc="Norm over positions, or over stated axes.",
    ),
    *(
        Op(
            name=name,
            rule=_reduce_rule,
            run=_reduce(name),
            attrs=_REDUCE,
            fresh=fresh,
            multiples=multiples,
            doc=doc,
        )
        for name, fresh, multiples, doc in _REDUCTIONS
    ),
)
