"""Values that are no layers: parameters and constants as they are, axes repeated, chosen and stacked, and the
operations of torch itself: `pointwise` ones (any function of each element), `resample` (any function of
positions), and `aten` for everything that has no rule, which freezes what it touches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netgrow_cli.topology.layout import CannotAlign, Fixed, Layout
from netgrow_cli.topology.ops.base import INT, INTS, REQUIRED, TEXT, Attr, Call, Op, Param, axes_in, axis_in
from netgrow_cli.topology.ops.elementwise import broadcast
from netgrow_cli.topology.rule import Context, Role, Value

# Operations of torch that read files have no place in a network.
_NEVER = ("from_file", "_nested", "record_stream")


# -- parameters and constants ------------------------------------------------------------------------


def _parameter_rule(context: Context) -> tuple[Value, ...]:
    axes = context.params["weight"]
    if context.is_integer("weight"):
        for axis in axes:
            context.layouts.fix(axis, "an index table")
    for position, axis in enumerate(axes):
        context.use("weight", position, [(axis, Role.PRODUCES)])
    resolved = tuple(context.layouts.resolve(axis) for axis in axes)
    return (Value(resolved, max(len(axes) - 1, 0), context.is_integer("weight")),)


def _constant_rule(context: Context) -> tuple[Value, ...]:
    shape, value = [], context.attr("value")
    while isinstance(value, (list, tuple)):
        shape.append(len(value))
        value = value[0] if value else None
    axes = tuple(Fixed(size, f"{context.node.name} holds numbers of the code along it") for size in shape)
    return (Value(axes, max(len(axes) - 1, 0)),)


def _constant(call: Call) -> Any:
    dtype = getattr(call.torch, call.attrs["dtype"])
    return call.torch.tensor(call.attrs["value"], dtype=call.dtype if dtype.is_floating_point else dtype)


# -- axes ----------------------------------------------------------------------------------------------


def _expand_rule(context: Context) -> tuple[Value, ...]:
    """Values are the same along a repeated axis, so its units may be anything: it is a width of its own."""
    source, sizes = context.inputs[0], list(context.attr("sizes"))
    more = len(sizes) - len(source.axes)
    if more < 0:
        context.fail(f"{len(sizes)} sizes for an input of {len(source.axes)} axes", "attr:sizes")
    axes: list[Layout] = []
    for position, item in enumerate(sizes):
        old = source.axes[position - more] if position >= more else None
        if not isinstance(item, (int, str)) or isinstance(item, bool) or item == 0 or (item == -1 and old is None):
            context.fail(f"sizes: {item!r} is neither a size, -1 for an axis that stays, nor a name", "attr:sizes")
        size = old.size if item == -1 and old is not None else context.size(item)
        if old is not None and (item == -1 or size == old.size > 1):
            axes.append(old)
            continue  # (a stated 1 is a repetition that was pruned down to one)
        if old is not None:
            if old.size != 1:
                context.fail(f"an axis of {old.size} cannot be repeated to {size}", "attr:sizes")
            context.layouts.freeze(old, f"repeated by {context.node.name}")
        new = context.layouts.width(size)
        context.site(f"sizes[{position}]", new)
        axes.append(new)
    unit = min(source.unit_axis + more, max(len(axes) - 1, 0))  # (a number has no axis to start from)
    return (Value(tuple(axes), unit, source.integer),)


def _select_rule(context: Context) -> tuple[Value, ...]:
    source, index = context.inputs[0], context.attr("index")
    axis = axis_in(context, context.attr("axis"), len(source.axes), "axis")
    if not -source.axes[axis].size <= index < source.axes[axis].size:
        context.fail(f"index: {index} is not inside an axis of {source.axes[axis].size}", "attr:index")
    context.layouts.fix(source.axes[axis], f"one index of it is chosen by {context.node.name}")
    axes = (*source.axes[:axis], *source.axes[axis + 1 :])
    return (Value(axes, max(0, source.unit_axis - (axis <= source.unit_axis)), source.integer),)


def _unbind_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    axis = axis_in(context, context.attr("axis"), len(source.axes), "axis")
    count = source.axes[axis].size
    context.layouts.fix(source.axes[axis], f"taken apart by {context.node.name}")
    axes = (*source.axes[:axis], *source.axes[axis + 1 :])
    value = Value(axes, max(0, source.unit_axis - (axis <= source.unit_axis)), source.integer)
    return (value,) * count


def _stack_rule(context: Context) -> tuple[Value, ...]:
    first = context.inputs[0]
    if len({value.shape for value in context.inputs}) > 1:
        shapes = " and ".join(str(list(value.shape)) for value in context.inputs)
        context.fail(f"its operands have shapes {shapes}, which should be alike", "from")
    axes = list(broadcast(context, context.inputs))
    axis = axis_in(context, context.attr("axis"), len(axes) + 1, "axis")
    axes.insert(axis, Fixed(len(context.inputs), f"stacked by {context.node.name}"))
    return (Value(tuple(axes), first.unit_axis + (axis <= first.unit_axis), first.integer),)


def _roll_rule(context: Context) -> tuple[Value, ...]:
    source, shifts = context.inputs[0], context.attr("shifts")
    axes = axes_in(context, context.attr("axes"))
    if len(axes) != (len(shifts) if isinstance(shifts, (list, tuple)) else 1):
        context.fail(f"shifts: {shifts!r} should be one for each of the axes {context.attr('axes')!r}", "attr:shifts")
    for axis in axes:
        context.layouts.freeze(source.axes[axis], f"rolled by {context.node.name}")
    return (source,)


def _roll(call: Call) -> Any:
    return call.torch.roll(call.inputs[0], call.attrs["shifts"], call.attrs["axes"])


def _strided_rule(context: Context) -> tuple[Value, ...]:
    source, start, step = context.inputs[0], context.attr("start"), context.attr("step")
    axis = axis_in(context, context.attr("axis"), len(source.axes), "axis")
    if step < 1:
        context.fail(f"step: {step} should be at least 1", "attr:step")
    if not 0 <= start < source.axes[axis].size:
        context.fail(f"start: {start} is not inside an axis of {source.axes[axis].size}", "attr:start")
    size = len(range(start, source.axes[axis].size, step))
    why = f"one in {step} of it is taken by {context.node.name}"
    taken = _one_of_each(context, source.axes[axis], step, why) if start < step else None
    if taken is None:
        context.layouts.freeze(source.axes[axis], why)
        taken = Fixed(size, why)
    return (Value((*source.axes[:axis], taken, *source.axes[axis + 1 :]), source.unit_axis, source.integer),)


def _one_of_each(context: Context, axis: Layout, step: int, why: str) -> Layout | None:
    """What stands interleaved, (units step), is a unit for each step: all of them, at the start's place."""
    if axis.size % step or isinstance(axis, Fixed):
        return None
    try:
        units, places = context.layouts.factor(axis, (axis.size // step, step))
    except CannotAlign:
        return None
    context.layouts.fix(places, why)
    return units


def _strided(call: Call) -> Any:
    axis = call.attrs["axis"] % call.inputs[0].dim()
    picked = [slice(None)] * axis + [slice(call.attrs["start"], None, call.attrs["step"])]
    return call.inputs[0][tuple(picked)]


def _lookup_rule(context: Context) -> tuple[Value, ...]:
    """table[index]: rows chosen by integers; the first axis gives way to the index's axes."""
    table, index = context.inputs
    if not table.axes:
        context.fail("its table has no axes", "from")
    context.layouts.fix(table.axes[0], f"rows chosen by {context.node.name}")
    axes = (*index.axes, *table.axes[1:])
    return (Value(tuple(context.layouts.resolve(axis) for axis in axes), len(axes) - 1),)


# -- torch's own operations -----------------------------------------------------------------------------


def torch_call(call: Call) -> Any:
    """Call `aten.name.overload` with its recorded arguments; "$0" stands for the first operand."""
    name, _, overload = call.attrs["call"].removeprefix("aten.").partition(".")
    function = getattr(getattr(call.torch.ops.aten, name), overload or "default")
    arguments = [_argument(call, item) for item in call.attrs["args"]]
    keywords = {key: _argument(call, item) for key, item in call.attrs["kwargs"].items()}
    result = function(*arguments, **keywords)
    return tuple(result) if isinstance(result, (list, tuple)) else result


def _argument(call: Call, item: Any) -> Any:
    if isinstance(item, str) and item.startswith("$"):
        return call.inputs[int(item[1:])]
    if isinstance(item, str) and item.startswith("torch."):
        dtype = getattr(call.torch, item.removeprefix("torch."))
        return call.dtype if dtype.is_floating_point else dtype
    if isinstance(item, (list, tuple)):
        return [_argument(call, part) for part in item]
    return item


def check_call(context: Context) -> None:
    name = context.attr("call")
    if not name.startswith("aten.") or any(word in name for word in _NEVER):
        context.fail(f"call: {name!r} is no operation of torch that a network may use", "attr:call")


def _pointwise_rule(context: Context) -> tuple[Value, ...]:
    check_call(context)
    axes = broadcast(context, context.inputs)
    wide = max(context.inputs, key=lambda value: len(value.axes))
    return (Value(axes, wide.unit_axis),)


def _resample_rule(context: Context) -> tuple[Value, ...]:
    check_call(context)
    source, shape = context.inputs[0], list(context.attr("positions"))
    if len(shape) >= len(source.axes):
        context.fail(f"positions: {shape} are too many for an input of {list(source.shape)}", "attr:positions")
    kept = source.axes[: len(source.axes) - len(shape)]
    for axis in source.axes[len(kept) :]:
        context.layouts.freeze(axis, "positions")
    return (Value((*kept, *(Fixed(size, "positions") for size in shape)), source.unit_axis),)


def _aten_rule(context: Context) -> tuple[Value, ...]:
    check_call(context)
    why, shapes = f"{context.attr('call')} has no rule ({context.node.name})", context.attr("shapes")
    if not all(isinstance(shape, (list, tuple)) and all(isinstance(n, int) for n in shape) for shape in shapes):
        context.fail(f"shapes: {shapes!r} should be a list of sizes for each result", "attr:shapes")
    for value in context.inputs:
        for axis in value.axes:
            context.layouts.freeze(axis, why)
    return tuple(Value(tuple(Fixed(size, why) for size in shape), max(len(shape) - 1, 0)) for shape in shapes)


CALL: Mapping[str, Attr] = {
    "call": Attr(REQUIRED, TEXT),
    "args": Attr((), (list, tuple)),
    "kwargs": Attr({}, (dict,)),
}

OPS = (
    Op(
        name="parameter",
        rule=_parameter_rule,
        run=lambda call: call.params["weight"],
        params=(Param("weight"),),
        inputs=(0, 0),
        multiples="any",
        doc="A tensor of the checkpoint as a value: a class token, a position table, a layer scale.",
    ),
    Op(
        name="constant",
        rule=_constant_rule,
        run=_constant,
        attrs={"value": Attr(REQUIRED, (int, float, bool, list, tuple)), "dtype": Attr("float32", TEXT)},
        inputs=(0, 0),
        doc="Numbers that are written in the code.",
    ),
    Op(
        name="expand",
        rule=_expand_rule,
        run=lambda call: call.inputs[0].expand(call.shape()),
        attrs={"sizes": Attr(REQUIRED, (list, tuple))},
        fresh="mean",
        multiples="any",
        doc="Axes of size 1 repeated; -1 keeps an axis.",
    ),
    Op(
        name="select",
        rule=_select_rule,
        run=lambda call: call.inputs[0].select(call.attrs["axis"], call.attrs["index"]),
        attrs={"axis": Attr(REQUIRED, INT), "index": Attr(REQUIRED, INT)},
        fresh="mean",
        multiples="any",
        doc="One index of an axis, which goes.",
    ),
    Op(
        name="unbind",
        rule=_unbind_rule,
        run=lambda call: call.torch.unbind(call.inputs[0], call.attrs["axis"]),
        attrs={"axis": Attr(0, INT)},
        multiple=True,
        fresh="mean",
        multiples="any",
        doc="An axis taken apart; read as name[0], name[1].",
    ),
    Op(
        name="stack",
        rule=_stack_rule,
        run=lambda call: call.torch.stack(list(call.inputs), call.attrs["axis"]),
        attrs={"axis": Attr(0, INT)},
        inputs=(1, None),
        fresh="zero",
        multiples="any",
        doc="Operands side by side along a new axis.",
    ),
    Op(
        name="roll",
        rule=_roll_rule,
        run=_roll,
        attrs={"shifts": Attr(REQUIRED, INTS), "axes": Attr(REQUIRED, INTS)},
        fresh="mean",
        multiples="any",
        doc="Positions moved around.",
    ),
    Op(
        name="strided",
        rule=_strided_rule,
        run=_strided,
        attrs={"axis": Attr(REQUIRED, INT), "start": Attr(0, INT), "step": Attr(REQUIRED, INT)},
        fresh="mean",
        multiples="any",
        doc="Every so-manieth index of an axis.",
    ),
    Op(
        name="lookup",
        rule=_lookup_rule,
        run=lambda call: call.inputs[0][call.inputs[1]],
        inputs=(2, 2),
        fresh="mean",
        multiples="any",
        doc="table[index]: rows of the first operand, chosen by the second.",
    ),
    Op(
        name="pointwise",
        rule=_pointwise_rule,
        run=torch_call,
        attrs=CALL,
        inputs=(1, None),
        doc="A function of torch of each element alone, by its name there.",
    ),
    Op(
        name="resample",
        rule=_resample_rule,
        run=torch_call,
        attrs={**CALL, "positions": Attr(REQUIRED, (list, tuple))},
        doc="A function of torch of the last axes, which hold positions.",
    ),
    Op(
        name="aten",
        rule=_aten_rule,
        run=torch_call,
        attrs={**CALL, "shapes": Attr(REQUIRED, (list, tuple))},
        inputs=(0, None),
        multiple=True,
        doc="Any other operation of torch. It has no rule, so it freezes what it touches.",
    ),
)
