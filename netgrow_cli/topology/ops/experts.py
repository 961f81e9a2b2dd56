"""Weights by an equation, weights chosen by an index, and what routing tokens to them takes: rows chosen and put
back, and functions of torch that work along one axis (topk, sort, gather)."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from typing import Any

from netgrow_cli.topology.layout import Fixed, Layout
from netgrow_cli.topology.ops.base import BOOL, INT, REQUIRED, TEXT, Attr, Call, Op, Param, axis_in
from netgrow_cli.topology.ops.elementwise import broadcast
from netgrow_cli.topology.ops.tensor import CALL, check_call, torch_call
from netgrow_cli.topology.rule import Context, Value, notation

# -- weights -------------------------------------------------------------------------------------------


def _terms(context: Context, count: int) -> tuple[list[str], str]:
    """The operands' letters and the result's, checked; the last operand is the weight."""
    stated = str(context.attr("equation"))
    left, arrow, result = stated.replace(" ", "").partition("->")
    terms = left.split(",")
    letters = "".join(terms)
    known = letters.isalpha() or not letters
    if not arrow or len(terms) != count or not known or any(len(set(term)) != len(term) for term in (*terms, result)):
        context.fail(
            f"equation: {stated!r} should have {count} operands, the weight as the last, each letter once in an "
            "operand, and a result: 'bti,hio->bhto'",
            "attr:equation",
        )
    if not set(result) <= set(letters):
        context.fail(f"equation: {stated!r} has letters in its result that no operand has", "attr:equation")
    return terms, result


def _line(terms: Sequence[str], result: str) -> str:
    return f"{', '.join(' '.join(term) for term in terms)} -> {' '.join(result)}"


def _applied(context: Context, line: str, data: str) -> tuple[Value, ...]:
    (value,) = notation(line, ("weight",), data=data)(context)
    return (dataclasses.replace(value, unit_axis=min(value.unit_axis, max(len(value.axes) - 1, 0))),)


def _dense_rule(context: Context) -> tuple[Value, ...]:
    terms, result = _terms(context, 2)
    return _applied(context, _line(terms, result), "summed over")


def _dense(call: Call) -> Any:
    return call.torch.einsum(call.attrs["equation"], call.inputs[0], call.params["weight"])


def _experts_rule(context: Context) -> tuple[Value, ...]:
    """Roles as of any weight; the letter that the weight alone has is the expert."""
    (read, index, weight), result = _terms(context, 3)
    alone = [letter for letter in weight if letter not in read + index + result]
    if weight[:1] not in alone or len(alone) > 1 or not (read.startswith(index) and result.startswith(index)):
        context.fail(
            f"equation: {context.attr('equation')!r} should be 'ti,t,eoi->to': the index's axes lead in operand and "
            "result, and the weight begins with the axis that is chosen from",
            "attr:equation",
        )
    why = f"experts, of which one is chosen by index ({context.node.name})"
    return _applied(context, _line([read, index, weight], result), why)


def _experts(call: Call) -> Any:
    """One expert after the other, on the tokens that are its own."""
    source, index = call.inputs
    read, chosen, weight = call.attrs["equation"].replace(" ", "").partition("->")[0].split(",")
    result = call.attrs["equation"].replace(" ", "").partition("->")[2]
    lead, several = index.shape, len(chosen)
    row = next(letter for letter in string.ascii_letters if letter not in read + weight + result)
    equation = f"{row}{read[several:]},{weight[1:]}->{row}{result[several:]}"
    rows, index = source.reshape(-1, *source.shape[several:]), index.reshape(-1)
    shape = dict(zip(weight[1:], call.params["weight"].shape[1:], strict=True))
    shape |= dict(zip(read, source.shape, strict=True))
    found = rows.new_zeros(len(index), *(shape[letter] for letter in result[several:]))
    for expert in index.unique().tolist():
        own = index == expert
        found[own] = call.torch.einsum(equation, rows[own], call.params["weight"][expert])
    return found.reshape(*lead, *found.shape[1:])


# -- rows ----------------------------------------------------------------------------------------------


def _chosen(context: Context, table: Value, indices: Sequence[Value]) -> tuple[int, int, list[Layout]]:
    """Where the indexed axes begin, how many they are, and the axes that take their place."""
    axis = axis_in(context, context.attr("axis"), len(table.axes), "axis")
    count = len(indices[0].axes) if context.attr("mask") else len(indices)
    if axis + count > len(table.axes) or (context.attr("mask") and len(indices) != 1):
        context.fail(f"it has {len(indices)} indices, more than the axes of its table {list(table.shape)}", "from")
    for layout in table.axes[axis : axis + count]:
        context.layouts.fix(layout, f"rows chosen by {context.node.name}")
    if context.attr("mask"):
        for layout in indices[0].axes:
            context.layouts.freeze(layout, f"a mask over positions ({context.node.name})")
        return axis, count, [Fixed(context.attr("rows"), f"rows chosen by {context.node.name}")]
    return axis, count, list(broadcast(context, indices))


def _pick_rule(context: Context) -> tuple[Value, ...]:
    table = context.inputs[0]
    axis, count, rows = _chosen(context, table, context.inputs[1:])
    axes = tuple(context.layouts.resolve(item) for item in (*table.axes[:axis], *rows, *table.axes[axis + count :]))
    return (Value(axes, max(len(axes) - 1, 0), table.integer),)


def _indices(call: Call, given: Sequence[Any]) -> list[Any]:
    return [index.bool() for index in given] if call.attrs["mask"] else list(given)


def _pick(call: Call) -> Any:
    before = call.attrs["axis"] % call.inputs[0].dim()
    return call.inputs[0][(slice(None),) * before + tuple(_indices(call, call.inputs[1:]))]


def _put_rule(context: Context) -> tuple[Value, ...]:
    table, values = context.inputs[:2]
    axis, count, rows = _chosen(context, table, context.inputs[2:])
    place = Value((*table.axes[:axis], *rows, *table.axes[axis + count :]), 0)
    broadcast(context, [place, values])
    return (table,)


def _put(call: Call) -> Any:
    table, values = call.inputs[:2]
    axis = call.attrs["axis"] % table.dim()
    put = call.torch.ops.aten.index_put.default
    return put(table, [None] * axis + _indices(call, call.inputs[2:]), values.to(table.dtype), call.attrs["accumulate"])


# -- along one axis ------------------------------------------------------------------------------------


def _along_rule(context: Context) -> tuple[Value, ...]:
    """Every other axis stays, and is the same in all operands; the axis itself goes where its new size is 0."""
    check_call(context)
    source, sizes = context.inputs[0], context.attr("sizes")
    name = context.attr("call").split(".")[1]
    why = f"{name} works along it ({context.node.name})"
    rank = len(source.axes)
    if context.attr("adds"):
        axes = tuple((*source.axes, Fixed(size, why)) for size in sizes)
        return tuple(Value(item, source.unit_axis) for item in axes)
    axis = axis_in(context, context.attr("axis"), rank, "axis")
    if any(len(value.axes) != rank for value in context.inputs):
        context.fail("its operands should have as many axes as the first", "from")
    others = [Value((*value.axes[:axis], *value.axes[axis + 1 :]), 0) for value in context.inputs]
    kept = broadcast(context, others)
    for value in context.inputs:
        context.layouts.freeze(value.axes[axis], why)
    held = [[Fixed(size, why)] if size else [] for size in sizes]
    return tuple(
        Value((*kept[:axis], *item, *kept[axis:]), min(source.unit_axis, rank - 2 + len(item))) for item in held
    )


_ROWS = {"axis": Attr(0, INT), "mask": Attr(False, BOOL)}

OPS = (
    Op(
        name="einsum_dense",
        rule=_dense_rule,
        run=_dense,
        params=(Param("weight"),),
        attrs={"equation": Attr(REQUIRED, TEXT)},
        multiples="any",
        doc="A linear layer by an equation, the weight as its second operand: `bti,hio->bhto`.",
    ),
    Op(
        name="experts",
        rule=_experts_rule,
        run=_experts,
        params=(Param("weight"),),
        attrs={"equation": Attr(REQUIRED, TEXT)},
        inputs=(2, 2),
        multiples="any",
        doc="A linear layer whose weight is chosen for each token by the second operand: `ti,t,eoi->to`.",
    ),
    Op(
        name="pick",
        rule=_pick_rule,
        run=_pick,
        attrs={**_ROWS, "rows": Attr(0, INT)},
        inputs=(2, None),
        fresh="mean",
        multiples="any",
        doc="table[i, j, ...] from `axis` on, or table[mask], which had so many `rows`; from: [table, i, j].",
    ),
    Op(
        name="put",
        rule=_put_rule,
        run=_put,
        attrs={**_ROWS, "rows": Attr(0, INT), "accumulate": Attr(False, BOOL)},
        inputs=(3, None),
        fresh="zero",
        doc="Rows replaced, or added to (`accumulate`); from: [table, values, i, j].",
    ),
    Op(
        name="along",
        rule=_along_rule,
        run=torch_call,
        attrs={
            **CALL,
            "axis": Attr(-1, INT),
            "sizes": Attr(REQUIRED, (list, tuple)),
            "adds": Attr(False, BOOL),
        },
        inputs=(1, None),
        multiple=True,
        doc="A function of torch along one axis (topk, sort, gather); the others stay.",
    ),
)
