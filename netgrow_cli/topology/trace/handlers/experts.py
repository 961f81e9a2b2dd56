"""Parameters as operands of products, weights chosen by an index, and the routing of tokens to them.

A weight may stand in the code as `w`, `w.T`, `w[experts]` or `w[experts].transpose(1, 2)`: what it is before the
product is read through, so that its axes have roles.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.trace.convert import Converter, Handler
from netgrow_cli.topology.trace.handlers import arithmetic, layers
from netgrow_cli.topology.trace.reading import (
    argument,
    as_list,
    is_float,
    is_tensor,
    operation,
    shape,
    shape_of,
)


@frozen
class Weight:
    """A parameter as a product sees it.

    order: for each axis, which axis of the parameter it is; None for those of the index, -1 for one along which it
    repeats. index: what chooses along the parameter's first axis; a number where the code states it.
    """

    param: Any
    order: tuple[int | None, ...]
    index: Any = None


def weight_of(made: Converter, node: Any) -> Weight | None:
    """The parameter behind an operand; None where it is computed."""
    if made.tensor(node) is not None:
        return Weight(node, tuple(range(len(shape(node))))) if is_float(node) else None
    if getattr(node, "op", None) != "call_function" or not node.args:
        return None
    name = operation(node.target)
    inner = weight_of(made, node.args[0]) if hasattr(node.args[0], "op") else None
    if inner is None:
        return None
    rank, order = len(inner.order), list(inner.order)
    if name in ("transpose", "swapaxes", "t", "mT") and rank > 1:
        one, other = node.args[1:3] if len(node.args) > 2 else (-2, -1)
        order[one], order[other] = order[other], order[one]
        return dataclasses.replace(inner, order=tuple(order))
    if name == "numpy_T":
        return dataclasses.replace(inner, order=tuple(reversed(order)))
    if name == "permute":
        return dataclasses.replace(inner, order=tuple(order[axis] for axis in node.args[1]))
    if name == "unsqueeze":
        place = node.args[1] % (rank + 1)
        return dataclasses.replace(inner, order=(*order[:place], -1, *order[place:]))
    if name == "expand":
        after = [-1] * (len(shape(node)) - rank) + order
        sizes = shape(inner.param)
        before = [now if axis == -1 else sizes[axis or 0] for axis, now in zip(after, shape(node), strict=True)]
        return dataclasses.replace(inner, order=tuple(after)) if before == shape(node) and inner.index is None else None
    if name == "index" and inner.index is None and order[:1] == [0]:
        indices = node.args[1]
        if len(indices) == 1 and indices[0] is not None and "int" in str(indices[0].meta["val"].dtype):
            return Weight(inner.param, (*[None] * len(shape(indices[0])), *order[1:]), indices[0])
    if name == "select" and inner.index is None and order[node.args[1]] == 0 and rank > 2:
        number = node.args[2] % shape(node.args[0])[node.args[1]]
        return Weight(inner.param, tuple(axis for axis in order if axis != 0), number)
    return None


def _product(made: Converter, node: Any, source: Any, weight: Weight, read: str, held: str, result: str) -> bool:
    """The layer `read,held->result`; held: the letters of the weight as the product sees it."""
    sizes: dict[str, int] = {}
    for term, value in ((read, shape(source)), (held, _seen(weight))):
        for letter, size in zip(term, value, strict=True):
            if sizes.setdefault(letter, size or 0) != size and size is not None:
                return False
    repeated = [letter for axis, letter in zip(weight.order, held, strict=True) if axis == -1]
    if any(letter not in read for letter in repeated):
        return False
    by_axis = {axis: letter for axis, letter in zip(weight.order, held, strict=True) if axis not in (None, -1)}
    if weight.index is None:
        term = "".join(by_axis[axis] for axis in range(len(by_axis)))
        op = _plain(read, term, result)
        attrs = {} if op else {"equation": f"{read},{term}->{result}"}
        made.put(node, op or "einsum_dense", [source], {"weight": weight.param}, attrs)
        return True
    chosen = "".join(letter for axis, letter in zip(weight.order, held, strict=True) if axis is None)
    if not (read.startswith(chosen) and result.startswith(chosen)):
        return False
    expert = next(letter for letter in string.ascii_letters if letter not in read + held + result)
    term = expert + "".join(by_axis[axis] for axis in range(1, len(by_axis) + 1))
    index = _number(made, node, weight.index) if isinstance(weight.index, int) else made.ref(weight.index)
    _put(made, node, "experts", [made.ref(source), index], weight, {"equation": f"{read},{chosen},{term}->{result}"})
    return True


def _seen(weight: Weight) -> list[int | None]:
    """The shape of a weight as the product sees it; None along which it repeats."""
    sizes = shape(weight.param)
    index = [] if weight.index is None or isinstance(weight.index, int) else shape(weight.index)
    lead = iter(index)
    return [next(lead) if axis is None else None if axis == -1 else sizes[axis] for axis in weight.order]


def _plain(read: str, term: str, result: str) -> str | None:
    """The layer with a name of its own: y = x W^T, or y = x W."""
    if len(term) != 2 or len(result) != len(read) or read[:-1] != result[:-1] or read[-1] == result[-1]:
        return None
    return {result[-1] + read[-1]: "linear", read[-1] + result[-1]: "linear_io"}.get(term)


def _number(made: Converter, node: Any, number: int) -> str:
    return made.extra(node, "expert", "constant", [], {"value": number, "dtype": "int64"})


def _put(made: Converter, node: Any, op: str, refs: Sequence[str], weight: Weight, attrs: dict[str, Any]) -> None:
    """As `Converter.put`, from references."""
    name = made.extra(node, op, op, refs, attrs, {"weight": weight.param})
    made.give(node, name)


# -- products ------------------------------------------------------------------------------------------


def _matmul(made: Converter, node: Any) -> bool:
    left, right = node.args[:2]
    return _with_weight(made, node, left, right) or _known(node)(made, node)


def _with_weight(made: Converter, node: Any, left: Any, right: Any) -> bool:
    """A product of matrices of which one operand is a weight."""
    weights = weight_of(made, left), weight_of(made, right)
    if (weights[0] is None) == (weights[1] is None):
        return False
    ranks = len(shape(left)), len(shape(right))
    outer = string.ascii_lowercase[: max(*ranks, 2) - 2]
    row, inner, column = "r" if ranks[0] > 1 else "", "i", "c" if ranks[1] > 1 else ""
    terms = [
        outer[len(outer) - max(rank - 2, 0) :] + matrix
        for rank, matrix in zip(ranks, (row + inner, inner + column), strict=True)
    ]
    result = outer + row + column
    if weights[1] is not None:
        return _product(made, node, left, weights[1], terms[0], terms[1], result)
    assert weights[0] is not None
    return _product(made, node, right, weights[0], terms[1], terms[0], result)


def _einsum(made: Converter, node: Any) -> bool:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    weights = [weight_of(made, operand) for operand in operands]
    plain = all(len(set(term)) == len(term) and term.isalpha() for term in letters)
    if arrow and plain and len(operands) == 2 and (weights[0] is None) != (weights[1] is None):
        place = 1 if weights[1] is not None else 0
        weight = weights[place]
        assert weight is not None
        if _product(made, node, operands[1 - place], weight, letters[1 - place], letters[place], result):
            return True
    return _known(node)(made, node)


def _linear(made: Converter, node: Any) -> bool:
    """A weight that is computed of parameters is applied piece by piece: x (V + B A)^T is x V^T + (x A^T) B^T."""
    source, weight = node.args[:2]
    bias = argument(node, 2, "bias")
    if layers.linear_weight(made, weight) is not None and layers.HANDLERS["linear"](made, node):
        return True
    if bias is not None and _same_rows(made, node, source, weight, bias):
        return True
    found = _applied(made, node, made.ref(source), weight, len(shape(source)))
    if found is None:
        if len(shape(weight)) != 2:
            return False
        turned = made.extra(node, "turned", "transpose", [made.ref(weight)], {"axes": [0, 1]})
        found = made.extra(node, "product", "matmul", [made.ref(source), turned], {})
    if bias is not None:
        found = made.extra(node, "sum", "add", [found, made.ref(bias)], {})
    made.give(node, found)
    return True


def _applied(made: Converter, node: Any, source: str, weight: Any, rank: int) -> str | None:
    """The reference of x W^T, for a W that is linear in parameters; None where it is not."""
    known = weight_of(made, weight)
    if known is not None and len(known.order) == 2 and -1 not in known.order:
        return _applied_weight(made, node, source, known, rank)
    if getattr(weight, "op", None) != "call_function":
        return None
    name, args = operation(weight.target), weight.args
    if name in ("add", "sub") and len(args) == 2 and not weight.kwargs and all(_matrix(part) for part in args):
        parts = [_applied(made, node, source, part, rank) for part in args]
        if None in parts or shape(args[0]) != shape(args[1]):
            return None
        return made.extra(node, name, name, [part for part in parts if part is not None], {})
    if name in ("mul", "div") and _matrix(args[0]) and isinstance(args[1], (int, float)) and not weight.kwargs:
        inner = _applied(made, node, source, args[0], rank)
        return inner and made.extra(node, "scaled", name, [inner], {"by": args[1]})
    if name in ("matmul", "mm") and all(_matrix(part) for part in args[:2]):
        first = _applied(made, node, source, args[1], rank)
        return first and _applied(made, node, first, args[0], rank)
    return _rows(made, node, source, weight, rank)


def _applied_weight(made: Converter, node: Any, source: str, weight: Weight, rank: int) -> str | None:
    params = {"weight": weight.param}
    if weight.index is None:
        return made.extra(node, "product", "linear" if weight.order == (0, 1) else "linear_io", [source], {}, params)
    if not isinstance(weight.index, int) and shape(weight.index):
        return None
    read = string.ascii_lowercase[:rank]
    term = {2: "zy", 1: "yz"}[weight.order[1] or 0].replace("y", read[-1])
    index = _number(made, node, weight.index) if isinstance(weight.index, int) else made.ref(weight.index)
    equation = f"{read},,x{term}->{read[:-1]}z"
    return made.extra(node, "product", "experts", [source, index], {"equation": equation}, params)


def _matrix(value: Any) -> bool:
    return hasattr(value, "op") and is_tensor(value) and len(shape(value)) == 2


def _rows(made: Converter, node: Any, source: str, weight: Any, rank: int) -> str | None:
    """Some rows of a weight are some of what all of it gives."""
    found = _range(weight)
    inner = _applied(made, node, source, found[0], rank) if found is not None and _matrix(found[0]) else None
    if found is None or inner is None:
        return None
    attrs = {"axis": -1, "start": found[1], "stop": found[2]}
    return made.extra(node, "rows", "slice", [inner], attrs)


def _same_rows(made: Converter, node: Any, source: Any, weight: Any, bias: Any) -> bool:
    """The same rows of a weight and of its bias, as torch's own attention takes them."""
    if any(getattr(value, "op", None) != "call_function" for value in (weight, bias)):
        return False
    rows, shared = _range(weight), _range(bias)
    if rows is None or shared is None or rows[1:] != shared[1:] or shape(rows[0])[:1] != shape(shared[0]):
        return False
    if made.tensor(rows[0]) is None or made.tensor(shared[0]) is None:
        return False
    whole = made.extra(node, "all", "linear", [made.ref(source)], {}, {"weight": rows[0], "bias": shared[0]})
    made.put_refs(node, "slice", [whole], {"axis": -1, "start": rows[1], "stop": rows[2]})
    return True


def _range(weight: Any) -> tuple[Any, int, int] | None:
    """What a value is a range of the first axis of, and the range."""
    name, first = operation(weight.target), weight.args[0]
    if name == "slice" and argument(weight, 1, "dim", 0) == 0 and argument(weight, 4, "step", 1) == 1:
        start = argument(weight, 2, "start") or 0
        start = max(start + shape(first)[0], 0) if start < 0 else start
        return first, start, start + shape(weight)[0]
    if name != "getitem" or operation(first.target) not in ("chunk", "split", "split_with_sizes"):
        return None
    if argument(first, 2, "dim", 0) != 0:
        return None
    sizes, place = [shape_of(part)[0] for part in as_list(first.meta["val"])], weight.args[1]
    return first.args[0], sum(sizes[:place]), sum(sizes[: place + 1])


def _addmm(made: Converter, node: Any) -> bool:
    """bias + x W."""
    bias, source, weight = node.args[:3]
    found = weight_of(made, weight)
    if len(node.args) > 3 or node.kwargs:
        return operation(node.target) == "baddbmm" and arithmetic.HANDLERS["baddbmm"](made, node)
    if found is not None and found.index is None and made.tensor(bias) is not None and len(shape(bias)) == 1:
        op = "linear_io" if found.order == (0, 1) else "linear"
        if len(found.order) == 2:
            made.put(node, op, [source], {"weight": found.param, "bias": bias})
            return True
    if not _with_weight(made, node, source, weight):
        made.give(node, made.extra(node, "product", "matmul", [made.ref(source), made.ref(weight)], {}))
    made.give(node, made.extra(node, "sum", "add", [made.ref(node), made.ref(bias)], {}))
    return True


def _grouped_mm(made: Converter, node: Any) -> bool:
    """Rows in the order of their experts; `offs` says where each expert's end."""
    source, weight = node.args[:2]
    ends = argument(node, 2, "offs")
    found = weight_of(made, weight)
    if found is None or found.index is not None or len(found.order) != 3 or found.order[0] != 0 or ends is None:
        return False
    if len(shape(source)) != 2 or argument(node, 3, "bias") is not None:
        return False
    count = shape(source)[0]
    dtype = str(ends.meta["val"].dtype)
    numbers = made.extra(node, "rows", "constant", [], {"value": list(range(count)), "dtype": dtype[6:]})
    attrs = {"call": "aten.searchsorted.Tensor", "args": ["$0", "$1"], "kwargs": {"right": True}, "shapes": [[count]]}
    index = made.extra(node, "expert", "aten", [made.ref(ends), numbers], attrs)
    term = "eio" if found.order == (0, 1, 2) else "eoi"
    _put(made, node, "experts", [made.ref(source), f"{index}[0]"], found, {"equation": f"ti,t,{term}->to"})
    made.fixed_batch = True
    return True


def _known(node: Any) -> Handler:
    return arithmetic.HANDLERS[operation(node.target)]


HANDLERS: dict[str, Handler] = {
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "einsum": _einsum,
    "linear": _linear,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "_grouped_mm": _grouped_mm,
    "grouped_mm_fallback": _grouped_mm,
}
