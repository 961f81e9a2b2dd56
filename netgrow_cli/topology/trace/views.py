"""Views in a record: taken again of what has changed, and put back into what they were taken of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netgrow_cli.topology.trace.reading import argument, operation, shape_of

Emit = Callable[[Any, Sequence[Any], Mapping[str, Any], Any], Any]
"""Adds an operation to the record: target, arguments, keywords, a value with the result's shape and dtype."""

_SAME = ("alias", "detach", "to", "contiguous", "lift_fresh", "type_as", "positive", "resolve_conj", "resolve_neg")
_REGROUPED = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
_SWAPPED = ("transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "matrix_H")
_CUT = ("split", "chunk", "split_with_sizes", "tensor_split", "unbind", "unsafe_chunk", "unsafe_split")


class NoInverse(Exception):
    """A view of a kind that cannot be put back."""


def taken_again(view: Any, source: Any, emit: Emit) -> Any:
    """The same view of another node; a view that is None is all of it."""
    if view is None:
        return source
    if operation(view.target) == "getitem":
        whole = view.args[0]
        again = emit(whole.target, (source, *whole.args[1:]), whole.kwargs, whole.meta["val"])
        return emit(view.target, (again, view.args[1]), {}, view.meta["val"])
    return emit(view.target, (source, *view.args[1:]), view.kwargs, view.meta["val"])


def put_back(view: Any, base: Any, values: Any, emit: Emit) -> Any:
    """The node with what the view was taken of, when the view's values are others. Raises NoInverse."""
    import torch

    aten = torch.ops.aten
    name = "alias" if view is None else operation(view.target)
    whole, sizes = base.meta["val"], shape_of(base.meta["val"])
    if name in _SAME or (name == "expand" and shape_of(view.meta["val"]) == sizes):
        return values
    if name in _REGROUPED:
        return emit(aten.reshape.default, (values, sizes), {}, whole)
    if name in _SWAPPED and (len(sizes) == 2 or name in ("transpose", "swapaxes", "swapdims")):
        axes = view.args[1:3] if len(view.args) > 2 else (0, 1)
        return emit(aten.transpose.int, (values, *axes), {}, whole)
    if name == "permute":
        order = [axis % len(sizes) for axis in view.args[1]]
        return emit(aten.permute.default, (values, [order.index(axis) for axis in range(len(sizes))]), {}, whole)
    if name == "slice":
        rest = [argument(view, n, key) for n, key in ((1, "dim"), (2, "start"), (3, "end"), (4, "step"))]
        rest = [rest[0] or 0, rest[1], rest[2], rest[3] or 1]
        return emit(aten.slice_scatter.default, (base, values, *rest), {}, whole)
    if name == "narrow":
        axis, start, length = view.args[1:4]
        return _range(base, values, axis, start, start + length, emit)
    if name == "select":
        axis, index = view.args[1], view.args[2]
        return _one(base, values, axis, index % sizes[axis], emit)
    if name == "getitem" and operation(view.args[0].target) in _CUT:
        return _part(view, base, values, emit)
    raise NoInverse(name)


def _range(base: Any, values: Any, axis: int, start: int, stop: int, emit: Emit) -> Any:
    import torch

    arguments = (base, values, axis, start, stop, 1)
    return emit(torch.ops.aten.slice_scatter.default, arguments, {}, base.meta["val"])


def _one(base: Any, values: Any, axis: int, index: int, emit: Emit) -> Any:
    import torch

    axis %= len(base.meta["val"].shape)
    wide = emit(torch.ops.aten.unsqueeze.default, (values, axis), {}, values.meta["val"].unsqueeze(axis))
    return _range(base, wide, axis, index, index + 1, emit)


def _part(view: Any, base: Any, values: Any, emit: Emit) -> Any:
    """One of several parts of an axis."""
    cut, index = view.args
    name = operation(cut.target)
    axis = argument(cut, 1 if name == "unbind" else 2, "dim", 0)
    if name == "unbind":
        return _one(base, values, axis, index, emit)
    widths = [part.shape[axis] for part in cut.meta["val"]]
    return _range(base, values, axis, sum(widths[:index]), sum(widths[: index + 1]), emit)
