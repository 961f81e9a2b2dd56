"""Rows chosen and put back, functions along one axis, axes repeated: what routing tokens to experts takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from netgrow_cli.topology.trace.convert import Converter, Handler
from netgrow_cli.topology.trace.handlers import axes
from netgrow_cli.topology.trace.reading import argument, as_list, functional_form, is_float, operation, shape, shape_of


def _index(made: Converter, node: Any) -> bool:
    table, indices = node.args[:2]
    found = _indices(indices)
    if found is None:
        return False
    axis, given, mask = found
    if axis == 0 and len(given) == 1 and not mask:
        return axes.HANDLERS["index"](made, node)
    attrs = {"axis": axis, **({"mask": True, "rows": shape(node)[axis]} if mask else {})}
    made.fixed_batch = made.fixed_batch or mask
    made.put(node, "pick", [table, *given], attrs=attrs)
    return True


def _index_put(made: Converter, node: Any) -> bool:
    table, indices, values = node.args[:3]
    found = _indices(indices)
    if found is None or not is_float(table):
        return False
    axis, given, mask = found
    rest = len(shape(table)) - axis - len(shape(given[0]))
    rows = shape(values)[axis] if mask and len(shape(values)) == axis + 1 + rest else 1
    attrs = {"axis": axis, **({"mask": True, "rows": rows} if mask else {})}
    if argument(node, 3, "accumulate", False):
        attrs["accumulate"] = True
    made.fixed_batch = made.fixed_batch or mask
    made.put(node, "put", [table, values, *given], attrs=attrs)
    return True


def _indices(indices: Sequence[Any]) -> tuple[int, list[Any], bool] | None:
    """The first axis that is indexed, by what, and whether by a mask; None where that is not all side by side."""
    places = [n for n, index in enumerate(indices) if index is not None]
    given = [indices[n] for n in places]
    if not places or places != list(range(places[0], places[0] + len(places))):
        return None
    masks = ["bool" in str(index.meta["val"].dtype) for index in given]
    return (places[0], given, masks[0]) if len(given) == 1 or not any(masks) else None


def _index_add(made: Converter, node: Any) -> bool:
    table, axis, index, values = node.args[:4]
    if not is_float(table) or node.kwargs.get("alpha", 1) != 1:
        return False
    axis %= len(shape(table))
    made.put(node, "put", [table, values, index], attrs={"axis": axis, "accumulate": True})
    return True


def _along(dim: int, default: Any = None) -> Handler:
    """A function along one axis, which is the argument at this position."""

    def handler(made: Converter, node: Any) -> bool:
        operands, arguments, keywords = made.recorded(node)
        axis = argument(node, dim, "dim", default)
        rank = len(shape(node.args[0]))
        if axis is None or any(len(shape(operand)) != rank for operand in operands):
            return False
        others = {tuple(n for m, n in enumerate(shape(value)) if m != axis % rank) for value in operands}
        if rank == 0 or len(others) > 1:
            return False
        sizes = [shape_of(value)[axis] for value in as_list(node.meta["val"])]
        attrs = {"call": functional_form(str(node.target)), "args": arguments, "axis": axis, "sizes": sizes}
        if keywords:
            attrs["kwargs"] = keywords
        if operation(node.target) in ("gather", "scatter") and axis % rank != 0:
            made.fixed_batch = made.fixed_batch or len(operands) > 1
        _several(made, node, operands, attrs)
        return True

    return handler


def _several(made: Converter, node: Any, operands: Sequence[Any], attrs: dict[str, Any]) -> None:
    made.put(node, "along", operands, attrs=attrs, outputs=len(attrs["sizes"]))


def _one_hot(made: Converter, node: Any) -> bool:
    operands, arguments, _ = made.recorded(node)
    attrs = {"call": "aten.one_hot.default", "args": [*arguments[:1], shape(node)[-1]], "sizes": [shape(node)[-1]]}
    _several(made, node, operands, {**attrs, "adds": True})
    return True


def _masked_fill(made: Converter, node: Any) -> bool:
    operands, arguments, _ = made.recorded(node)
    attrs = {"call": functional_form(str(node.target)), "args": arguments}
    made.put(node, "pointwise", operands, attrs=attrs)
    return True


def _copy(made: Converter, node: Any) -> bool:
    """What is copied, in the place of what it is copied into."""
    into, source = node.args[:2]
    if not (is_float(into) and is_float(source)):
        return False
    if shape(into) == shape(source):
        made.alias(node, source)
    else:
        made.put(node, "expand", [source], attrs={"sizes": [made.size(size) for size in shape(into)]})
    return True


def _filled(position: int | None, value: float = 0.0) -> Handler:
    """A tensor of one number, whatever it takes its shape from. position: of the number among the arguments."""

    def handler(made: Converter, node: Any) -> bool:
        number = value if position is None else argument(node, position, "fill_value")
        if not isinstance(number, (int, float)):
            return False
        made.know(node, number)
        return True

    return handler


def _largest(made: Converter, node: Any) -> bool:
    """max(x, dim), of which the places are not read."""
    axis, keep = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
    places = [user for user in node.users if operation(user.target) == "getitem" and user.args[1] == 1]
    if axis is None or hasattr(axis, "op") or any(user.users for user in places):
        return False
    op = {"max": "amax", "min": "amin"}[operation(node.target)]
    made.put(node, op, [node.args[0]], attrs={"axes": [axis], **({"keepdim": True} if keep else {})})
    return True


def _repeat_interleave(made: Converter, node: Any) -> bool:
    """Each index of an axis several times: (t) -> (t times)."""
    source, times = node.args[:2]
    axis = argument(node, 2, "dim")
    if axis is None or not isinstance(times, int):
        return False
    axis %= len(shape(source))
    wide = made.extra(node, "wide", "unsqueeze", [made.ref(source)], {"axis": axis + 1})
    sizes = [times if n == axis + 1 else -1 for n in range(len(shape(source)) + 1)]
    many = made.extra(node, "many", "expand", [wide], {"sizes": sizes})
    made.put_refs(node, "flatten", [many], {"start": axis, "end": axis + 1})
    return True


def _repeat(made: Converter, node: Any) -> bool:
    """All of an axis several times: (t) -> (times t)."""
    source, times = node.args[:2]
    before = shape(source)
    ref, more = made.ref(source), len(times) - len(before)
    if more < 0 or math.prod(times) == 0:
        return False
    for _ in range(more):
        ref = made.extra(node, "wide", "unsqueeze", [ref], {"axis": 0})
    sizes = [1] * more + before
    for axis, count in enumerate(times):
        if count == 1:
            continue
        wide = made.extra(node, "wide", "unsqueeze", [ref], {"axis": axis})
        several = [count if n == axis else -1 for n in range(len(sizes) + 1)]
        many = made.extra(node, "many", "expand", [wide], {"sizes": several})
        ref = made.extra(node, "flat", "flatten", [many], {"start": axis, "end": axis + 1})
    made.give(node, ref)
    return True


def _turned(made: Converter, node: Any) -> bool:
    """x.T and x.mT."""
    count = len(shape(node))
    if operation(node.target) == "numpy_T":
        made.put(node, "permute", [node.args[0]], attrs={"axes": list(reversed(range(count)))})
    else:
        made.put(node, "transpose", [node.args[0]], attrs={"axes": [-2, -1]})
    return True


def _pairs(adds: bool) -> Handler:
    """Pairs of numbers as complex ones, and back."""

    def handler(made: Converter, node: Any) -> bool:
        operands, arguments, _ = made.recorded(node)
        attrs = {"call": str(node.target), "args": arguments, "sizes": [2 if adds else 0]}
        _several(made, node, operands, {**attrs, **({"adds": True} if adds else {})})
        return True

    return handler


HANDLERS: dict[str, Handler] = {
    "index": _index,
    "index_put": _index_put,
    "index_add": _index_add,
    "topk": _along(2, -1),
    "sort": _along(1, -1),
    "argsort": _along(1, -1),
    "gather": _along(1),
    "scatter": _along(1),
    "scatter_add": _along(1),
    "one_hot": _one_hot,
    "masked_fill": _masked_fill,
    "copy": _copy,
    "new_zeros": _filled(None),
    "new_ones": _filled(None, 1.0),
    "new_full": _filled(2),
    "new_empty": _filled(None),
    "empty_like": _filled(None),
    "full_like": _filled(1),
    "fill": _filled(1),
    "ones_like": _filled(None, 1.0),
    "max": _largest,
    "min": _largest,
    "numpy_T": _turned,
    "mT": _turned,
    "view_as_complex": _pairs(False),
    "view_as_real": _pairs(True),
    "repeat_interleave": _repeat_interleave,
    "repeat": _repeat,
}
