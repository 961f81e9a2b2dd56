"""Operations that sum over axes, or take the largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netgrow_cli.topology.layout import Fixed
from netgrow_cli.topology.ops import bounds
from netgrow_cli.topology.ops.base import (
    BOOL,
    INTS,
    NUMBER,
    Attr,
    Bounds,
    Call,
    Fresh,
    Multiples,
    Op,
    axes_in,
)
from netgrow_cli.topology.rule import Context, Value


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


def _reduce(name: str) -> Callable[[Call], Any]:
    return lambda call: _over(call, lambda x, axes, keep: getattr(call.torch, name)(x, dim=axes, keepdim=keep))


def _reduce_in_numpy(name: str) -> Callable[[Call], Any]:
    return lambda call: _over(call, lambda x, axes, keep: getattr(call.np, name)(x, axis=axes, keepdims=keep))


def _over(call: Call, reduce: Callable[[Any, tuple[int, ...], bool], Any]) -> Any:
    """The first operand, reduced over the axes that are meant; over none it stays."""
    axes = _reduced(call)
    return reduce(call.inputs[0], axes, call.attrs["keepdim"]) if axes else call.inputs[0]


def _reduced(call: Call) -> tuple[int, ...]:
    """The axes that are summed over."""
    stated = call.attrs["axes"]
    if stated is None:
        return tuple(n for n in range(1, call.inputs[0].ndim) if n != call.unit_axis)
    return tuple(stated) if isinstance(stated, (list, tuple)) else (stated,)


def _vector_norm(call: Call) -> Any:
    x, stated = call.inputs[0], call.attrs["axes"]
    axes = [n for n in range(1, x.dim()) if n != call.unit_axis] if stated is None else stated
    return call.torch.linalg.vector_norm(x, call.attrs["ord"], axes, call.attrs["keepdim"])


_REDUCE = {"axes": Attr(None, INTS), "keepdim": Attr(False, BOOL)}

_REDUCTIONS: tuple[tuple[str, Bounds, Fresh, Multiples, str], ...] = (
    ("mean", bounds.average, "mean", "any", "Mean over positions, or over stated axes."),
    ("sum", bounds.total, "mean", "any", "Sum over positions, or over stated axes."),
    ("amax", bounds.picks, "zero", "positive", "Largest over positions, or over stated axes."),
    ("amin", bounds.picks_least, "zero", "positive", "Smallest over positions, or over stated axes."),
)


OPS = (
    Op(
        name="vector_norm",
        rule=_reduce_rule,
        run=_vector_norm,
        bounds=bounds.ranging(0.0, None),
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
            numpy=_reduce_in_numpy(name),
            bounds=known,
            attrs=_REDUCE,
            fresh=fresh,
            multiples=multiples,
            doc=doc,
        )
        for name, known, fresh, multiples, doc in _REDUCTIONS
    ),
)
