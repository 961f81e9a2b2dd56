"""Elementwise operations, activations, products of activations."""

from __future__ import annotations

import math
from typing import Any

from netgrow_cli.topology.trace.convert import Converter, Handler
from netgrow_cli.topology.trace.folding import is_causal
from netgrow_cli.topology.trace.reading import argument, is_float, is_tensor, shape


def _identity(made: Converter, node: Any) -> bool:
    source = node.args[0]
    if is_tensor(node) and is_tensor(source):
        before, after = source.meta["val"].dtype, node.meta["val"].dtype
        if before != after and not (before.is_floating_point and after.is_floating_point):
            return False
    made.alias(node, source)
    return True


def _simple(op: str, **names: tuple[int, Any]) -> Handler:
    """One operand, settings by (position, default)."""

    def handler(made: Converter, node: Any) -> bool:
        attrs = {}
        for name, (position, default) in names.items():
            value = argument(node, position, name, default)
            if value != default:
                attrs[name] = list(value) if isinstance(value, (list, tuple)) else value
        made.put(node, op, [node.args[0]], attrs=attrs)
        return True

    return handler


def _arithmetic(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        first, second = node.args[:2]
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
            return False
        tensors = [value for value in (first, second) if hasattr(value, "op")]
        if len(tensors) == 2:
            made.put(node, op, tensors)
        elif hasattr(first, "op") and is_float(first):
            made.put(node, op, [first], attrs={"by": second})
        else:
            return False
        return True

    return handler


def _zero(made: Converter, node: Any) -> bool:
    if not is_float(node):
        return False
    made.put(node, "mul", [node.args[0]], attrs={"by": 0.0})
    return True


def _where(made: Converter, node: Any) -> bool:
    """A choice of each element between values, of which some may be numbers."""
    condition, *values = node.args[:3]
    tensors = [value for value in (condition, *values) if hasattr(value, "op")]
    if len(values) != 2:
        return False
    places = iter(range(len(tensors)))
    arguments = [f"${next(places)}" if hasattr(value, "op") else value for value in (condition, *values)]
    call = f"aten.where.{getattr(node.target, '_overloadname', 'self')}"
    made.put(node, "pointwise", tensors, attrs={"call": call, "args": arguments})
    return True


def _baddbmm(made: Converter, node: Any) -> bool:
    """beta x + alpha a b."""
    source, left, right = node.args[:3]
    beta, alpha = (argument(node, place, name, 1) for place, name in ((3, "beta"), (4, "alpha")))
    found = made.extra(node, "product", "matmul", [made.ref(left), made.ref(right)], {})
    if alpha != 1:
        found = made.extra(node, "scaled", "mul", [found], {"by": float(alpha)})
    other = made.ref(source)
    if beta != 1:
        other = made.extra(node, "weighed", "mul", [other], {"by": float(beta)})
    made.put_refs(node, "add", [other, found], {})
    return True


def _matmul(made: Converter, node: Any) -> bool:
    made.put(node, "matmul", list(node.args[:2]))
    return True


def _einsum(made: Converter, node: Any) -> bool:
    equation, operands = node.args[:2]
    if "." in equation or "->" not in equation:
        return False
    made.put(node, "einsum", list(operands), attrs={"equation": equation})
    return True


def _attention(made: Converter, node: Any) -> bool:
    query, key, value = node.args[:3]
    mask = argument(node, 3, "attn_mask")
    attrs = {}
    if argument(node, 5, "is_causal", False):
        attrs["is_causal"] = True
    scale = node.kwargs.get("scale")
    if len(shape(query)) < 3:
        return False
    # (A number that is the default's is taken for one that the code computes from the size.)
    if scale is not None and math.isclose(scale, shape(query)[-1] ** -0.5, rel_tol=1e-7):
        made.follows_size(node, scale, -0.5)
    elif scale is not None:
        attrs["scale"] = scale
    if mask is not None and (seen := made.number(mask)) is not None and is_causal(seen):
        attrs["is_causal"], mask = True, None
    made.put(node, "attention", [query, key, value, *([] if mask is None else [mask])], attrs=attrs)
    return True


def _softmax(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        made.put(node, op, [node.args[0]], attrs={"axis": node.args[1]})
        return True

    return handler


def _reduce(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        axes = argument(node, 1, "dim")
        if axes is None or not is_float(node.args[0]):
            return False
        axes = list(axes) if isinstance(axes, (list, tuple)) else [axes]
        keep = argument(node, 2, "keepdim", False)
        made.put(node, op, [node.args[0]], attrs={"axes": axes, **({"keepdim": True} if keep else {})})
        return True

    return handler


def _vector_norm(made: Converter, node: Any) -> bool:
    order, axes = argument(node, 1, "ord", 2), argument(node, 2, "dim")
    if axes is None:
        return False
    keep = argument(node, 3, "keepdim", False)
    attrs = {"axes": list(axes), **({"keepdim": True} if keep else {}), **({} if order == 2 else {"ord": float(order)})}
    made.put(node, "vector_norm", [node.args[0]], attrs=attrs)
    return True


_ACTIVATIONS = (
    "relu relu6 selu silu mish tanh hardswish sigmoid hardsigmoid softsign tanhshrink abs neg square sqrt exp log "
    "rsqrt sin cos erf"
).split()

HANDLERS: dict[str, Handler] = {
    **{name: _simple(name) for name in _ACTIVATIONS},
    **dict.fromkeys(
        (
            "clone",
            "contiguous",
            "detach",
            "to",
            "_to_copy",
            "lift_fresh_copy",
            "type_as",
            "dropout",
            "feature_dropout",
            "alpha_dropout",
            "positive",
            "native_dropout",
        ),
        _identity,
    ),
    "gelu": _simple("gelu", approximate=(1, "none")),
    "leaky_relu": _simple("leaky_relu", negative_slope=(1, 0.01)),
    "elu": _simple("elu", alpha=(1, 1.0)),
    "celu": _simple("celu", alpha=(1, 1.0)),
    "softplus": _simple("softplus", beta=(1, 1.0), threshold=(2, 20.0)),
    "hardtanh": _simple("hardtanh", min_val=(1, -1.0), max_val=(2, 1.0)),
    "glu": _simple("glu", axis=(1, None)),
    "add": _arithmetic("add"),
    "sub": _arithmetic("sub"),
    "mul": _arithmetic("mul"),
    "div": _arithmetic("div"),
    "maximum": _arithmetic("maximum"),
    "minimum": _arithmetic("minimum"),
    "where": _where,
    "baddbmm": _baddbmm,
    "zero": _zero,
    "zeros_like": _zero,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "einsum": _einsum,
    "linalg_vector_norm": _vector_norm,
    "mean": _reduce("mean"),
    "sum": _reduce("sum"),
    "amax": _reduce("amax"),
    "amin": _reduce("amin"),
    "softmax": _softmax("softmax"),
    "_softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "scaled_dot_product_attention": _attention,
}
