"""Operations that join and cut axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from netgrow_cli.topology.layout import CannotAlign, Fixed, Layout, SizeMismatch, concat
from netgrow_cli.topology.ops import bounds
from netgrow_cli.topology.ops.base import (
    INT,
    INTS,
    REQUIRED,
    Attr,
    Call,
    Op,
)
from netgrow_cli.topology.ops.shape import replaced, stated_axis
from netgrow_cli.topology.rule import Context, Value


def _cat_rule(context: Context) -> tuple[Value, ...]:
    axis = stated_axis(context)
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
    return (replaced(first, axis, context.layouts.resolve(joined)),)


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


def _on(call: Call) -> int:
    """The stated axis, or that of the units."""
    axis: int | None = call.attrs["axis"]
    return call.outputs[0].unit_axis if axis is None else axis


def _cat(call: Call) -> Any:
    return call.torch.cat(list(call.inputs), _on(call))


def _cat_in_numpy(call: Call) -> Any:
    return call.np.concatenate(call.inputs, _on(call))


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
    source, axis = context.inputs[0], stated_axis(context)
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
    return (replaced(source, axis, pieces[0]),)


def _slice(call: Call) -> Any:
    axis = _on(call)
    return call.inputs[0].narrow(axis, call.attrs["start"] or 0, call.shape()[axis])


def _slice_in_numpy(call: Call) -> Any:
    axis, start = _on(call), call.attrs["start"] or 0
    return _span(call.inputs[0], axis, start, start + call.shape()[axis])


def _span(x: Any, axis: int, start: int, stop: int) -> Any:
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, stop),)]


def _split_rule(context: Context) -> tuple[Value, ...]:
    source, axis = context.inputs[0], stated_axis(context)
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
    return tuple(replaced(source, axis, piece) for piece in pieces)


def _chunk_rule(context: Context) -> tuple[Value, ...]:
    source, axis = context.inputs[0], stated_axis(context)
    count, total = context.attr("chunks"), source.axes[axis].size
    if count < 1:
        context.fail(f"chunks: {count} should be from 1 up", "attr:chunks")
    each = total // count
    if total % count:
        context.fail(f"{total} units do not fall into {count} equal chunks", "attr:chunks")
    pieces = _pieces(context, axis, [each * n for n in range(1, count)])
    context.tie(pieces, f"chunk {context.node.name} cuts into {count} equal parts")
    return tuple(replaced(source, axis, piece) for piece in pieces)


def _cut_by_layout(call: Call) -> Any:
    axis = _on(call)
    return call.torch.split(call.inputs[0], [value.shape[axis] for value in call.outputs], axis)


def _cut_in_numpy(call: Call) -> Any:
    axis = _on(call)
    ends = [0, *itertools.accumulate(value.shape[axis] for value in call.outputs)]
    return tuple(_span(call.inputs[0], axis, start, stop) for start, stop in itertools.pairwise(ends))


def _glu_rule(context: Context) -> tuple[Value, ...]:
    source, axis = context.inputs[0], stated_axis(context)
    size = source.axes[axis].size
    if size % 2:
        context.fail(f"{size} units do not fall into two halves", "from")
    halves = _pieces(context, axis, [size // 2])
    context.layouts.unify(halves[0], halves[1])
    return (replaced(source, axis, context.layouts.resolve(halves[0])),)


def _glu(call: Call) -> Any:
    return call.functional.glu(call.inputs[0], _on(call))


def _glu_in_numpy(call: Call) -> Any:
    axis, x = _on(call), call.inputs[0]
    half = x.shape[axis] // 2
    return _span(x, axis, 0, half) / (1.0 + call.np.exp(-_span(x, axis, half, 2 * half)))


_AXIS = {"axis": Attr(None, INT)}

OPS = (
    Op(
        name="cat",
        rule=_cat_rule,
        run=_cat,
        numpy=_cat_in_numpy,
        bounds=bounds.moves,
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
        numpy=_slice_in_numpy,
        bounds=bounds.moves,
        attrs={**_AXIS, "start": Attr(0, INT), "stop": Attr(None, INT)},
        fresh="mean",
        multiples="any",
        doc="A range of the units, or of `axis`.",
    ),
    Op(
        name="split",
        rule=_split_rule,
        run=_cut_by_layout,
        numpy=_cut_in_numpy,
        bounds=bounds.moves,
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
        numpy=_cut_in_numpy,
        bounds=bounds.moves,
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
        numpy=_glu_in_numpy,
        bounds=bounds.gated,
        attrs=_AXIS,
        fresh="zero",
        doc="First half times sigmoid of the second.",
    ),
)
