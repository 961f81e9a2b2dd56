"""Operations on each element alone: activations, arithmetic between layers, dropout."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import Fixed, Layout, SizeMismatch
from netgrow_cli.topology.ops import bounds, norm_bounds
from netgrow_cli.topology.ops.base import NUMBER, TEXT, Attr, Bounds, Call, Fresh, Multiples, Op, Param
from netgrow_cli.topology.rule import Context, Role, Value, notation

# Activations of torch.nn.functional without settings: what they do to zeros, to multiples, to bounds.
_ACTIVATIONS: tuple[tuple[str, Fresh, Multiples, Bounds], ...] = (
    ("relu", "zero", "positive", bounds.rising(0.0, exact=True)),
    ("relu6", "zero", "none", bounds.rising(0.0, 6.0, exact=True)),
    ("selu", "zero", "none", bounds.rising()),
    ("silu", "zero", "none", bounds.valley(-1.2785, -0.278465)),
    ("mish", "zero", "none", bounds.valley(-1.1924, -0.308845)),
    ("tanh", "zero", "odd", bounds.rising(-1.0, 1.0)),
    ("hardswish", "zero", "none", bounds.valley(-1.5, -0.375001)),
    ("softsign", "zero", "odd", bounds.rising(-1.0, 1.0)),
    ("tanhshrink", "zero", "odd", bounds.rising()),
    ("sigmoid", "none", "none", bounds.rising(0.0, 1.0)),
    ("hardsigmoid", "none", "none", bounds.rising(0.0, 1.0)),
    ("logsigmoid", "none", "none", bounds.rising(None, 0.0)),
)
# torch's own functions of one argument.
_UNARY: tuple[tuple[str, Fresh, Multiples, Bounds], ...] = (
    ("abs", "zero", "positive", bounds.valley(0.0, 0.0)),
    ("neg", "zero", "any", bounds.falling()),
    ("sign", "zero", "odd", bounds.rising(-1.0, 1.0, exact=True)),
    ("square", "zero", "none", bounds.valley(0.0, 0.0)),
    ("sqrt", "zero", "none", bounds.rising()),
    ("sin", "zero", "odd", bounds.ranging(-1.0, 1.0)),
    ("tan", "zero", "odd", bounds.nothing),
    ("asin", "zero", "odd", bounds.rising()),
    ("atan", "zero", "odd", bounds.rising()),
    ("sinh", "zero", "odd", bounds.rising()),
    ("asinh", "zero", "odd", bounds.rising()),
    ("erf", "zero", "odd", bounds.rising(-1.0, 1.0)),
    ("expm1", "zero", "none", bounds.rising(-1.0)),
    ("log1p", "zero", "none", bounds.rising()),
    ("floor", "zero", "none", bounds.rising(exact=True)),
    ("ceil", "zero", "none", bounds.rising(exact=True)),
    ("round", "zero", "odd", bounds.rising(exact=True)),
    ("trunc", "zero", "odd", bounds.rising(exact=True)),
    ("exp", "none", "none", bounds.rising(0.0)),
    ("exp2", "none", "none", bounds.rising(0.0)),
    ("log", "none", "none", bounds.rising()),
    ("log2", "none", "none", bounds.rising()),
    ("log10", "none", "none", bounds.rising()),
    ("reciprocal", "none", "odd", bounds.reciprocal),
    ("rsqrt", "none", "none", bounds.falling()),
    ("cos", "none", "none", bounds.ranging(-1.0, 1.0)),
    ("cosh", "none", "none", bounds.valley(0.0, 1.0)),
    ("erfc", "none", "none", bounds.falling(0.0, 2.0)),
)


# What numpy calls otherwise, or has not at all, of (numpy, operand, settings).
_Numpy = Callable[[Any, Any, Mapping[str, Any]], Any]
_SELU = 1.0507009873554805, 1.6732632423543772
_IN_NUMPY: dict[str, _Numpy] = {
    "relu": lambda np, x, _: np.maximum(x, 0.0),
    "relu6": lambda np, x, _: np.clip(x, 0.0, 6.0),
    "selu": lambda np, x, _: _SELU[0] * np.where(x > 0, x, _SELU[1] * np.expm1(np.minimum(x, 0.0))),
    "silu": lambda np, x, _: x * _sigmoid(np, x),
    "mish": lambda np, x, _: x * np.tanh(np.logaddexp(x, 0.0)),
    "hardswish": lambda np, x, _: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "softsign": lambda np, x, _: x / (1.0 + np.abs(x)),
    "tanhshrink": lambda np, x, _: x - np.tanh(x),
    "sigmoid": lambda np, x, _: _sigmoid(np, x),
    "hardsigmoid": lambda np, x, _: np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "logsigmoid": lambda np, x, _: -np.logaddexp(-x, 0.0),
    "neg": lambda np, x, _: np.negative(x),
    "asin": lambda np, x, _: np.arcsin(x),
    "atan": lambda np, x, _: np.arctan(x),
    "asinh": lambda np, x, _: np.arcsinh(x),
    "erf": lambda np, x, _: _each(np, math.erf, x),
    "erfc": lambda np, x, _: _each(np, math.erfc, x),
    "rsqrt": lambda np, x, _: 1.0 / np.sqrt(x),
    "gelu": lambda np, x, a: _gelu(np, x, a["approximate"]),
    "leaky_relu": lambda np, x, a: np.where(x > 0, x, x * a["negative_slope"]),
    "hardtanh": lambda np, x, a: np.clip(x, a["min_val"], a["max_val"]),
    "hardshrink": lambda np, x, a: np.where(np.abs(x) <= a["lambd"], 0.0 * x, x),
    "softshrink": lambda np, x, a: x - np.clip(x, -a["lambd"], a["lambd"]),
    "elu": lambda np, x, a: np.where(x > 0, x, a["alpha"] * np.expm1(np.minimum(x, 0.0))),
    "celu": lambda np, x, a: np.where(x > 0, x, a["alpha"] * np.expm1(np.minimum(x, 0.0) / a["alpha"])),
    "softplus": lambda np, x, a: _softplus(np, x, a["beta"], a["threshold"]),
    "threshold": lambda np, x, a: np.where(x <= a["threshold"], a["value"], x),
    "rrelu": lambda np, x, a: np.where(x >= 0, x, x * ((a["lower"] + a["upper"]) / 2)),
    "clamp": lambda np, x, a: np.clip(x, a["min"], a["max"]),
    "pow": lambda np, x, a: np.power(x, a["by"]),
    "per_unit": lambda np, x, _: x * _sigmoid(np, 1.7 * x) + 0.25 * np.cos(x),
}


def _sigmoid(np: Any, x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def _each(np: Any, function: Callable[[float], float], x: Any) -> Any:
    return np.asarray(np.frompyfunc(function, 1, 1)(x)).astype(x.dtype)


def _gelu(np: Any, x: Any, approximate: str) -> Any:
    if approximate == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + _each(np, math.erf, x * math.sqrt(0.5)))


def _softplus(np: Any, x: Any, beta: float, threshold: float) -> Any:
    return np.where(x * beta > threshold, x, np.logaddexp(x * beta, 0.0) / beta)


def _in_numpy(name: str) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        return _IN_NUMPY[name](call.np, call.inputs[0], call.attrs)

    def by_name(call: Call) -> Any:
        return getattr(call.np, name)(call.inputs[0])

    return run if name in _IN_NUMPY else by_name


def _same(context: Context) -> tuple[Value, ...]:
    return (context.inputs[0],)


def _activation(name: str, *settings: str) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        return getattr(call.functional, name)(call.inputs[0], **{key: call.attrs[key] for key in settings})

    return run


def _unary(name: str) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        return getattr(call.torch, name)(call.inputs[0])

    return run


def _rrelu(call: Call) -> Any:
    return call.functional.rrelu(call.inputs[0], call.attrs["lower"], call.attrs["upper"], training=False)


def _identity(call: Call) -> Any:
    return call.inputs[0]


def _per_unit(call: Call) -> Any:
    # Neither odd, even nor piecewise linear, not zero at zero: what holds for it holds for any function.
    x = call.inputs[0]
    return x * call.torch.sigmoid(1.7 * x) + 0.25 * call.torch.cos(x)


def broadcast(context: Context, values: Sequence[Value]) -> tuple[Layout, ...]:
    """The axes of an elementwise result; operands are unified where they meet, axes of size 1 repeat.

    A repeated axis must stay of size 1, so it is frozen.
    """
    rank = max(len(value.axes) for value in values)
    axes: list[Layout] = []
    for position in range(-rank, 0):
        meeting = [value.axes[position] for value in values if len(value.axes) >= -position]
        size = max(axis.size for axis in meeting)
        full = [axis for axis in meeting if axis.size == size]
        for axis in meeting:
            if axis.size != size:
                if axis.size != 1:
                    sizes = " and ".join(str(list(value.shape)) for value in values)
                    context.fail(f"its operands have shapes {sizes}, which do not fit each other", "from")
                context.layouts.freeze(axis, f"repeated along another axis by {context.node.name}")
        for axis in full[1:]:
            context.layouts.unify(full[0], axis)
        axes.append(context.layouts.resolve(full[0]))
    return tuple(axes)


def _arithmetic_rule(context: Context) -> tuple[Value, ...]:
    by = context.attr("by")
    if by is None and len(context.inputs) < 2:
        context.fail("it needs two operands (`from: [a, b]`), or one and a number (`by: 2.0`)", "from")
    if by is not None and len(context.inputs) > 1:
        context.fail("`by` takes the place of the second operand; give one operand in `from`", "from")
    axes = broadcast(context, context.inputs)
    wide = max(context.inputs, key=lambda value: len(value.axes))
    return (Value(axes, wide.unit_axis),)


def _arithmetic(name: str) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        operands = list(call.inputs)
        if call.attrs["by"] is not None:
            # (torch's maximum and minimum take no number.)
            number = call.attrs["by"]
            operands.append(operands[0].new_tensor(number) if name in ("maximum", "minimum") else number)
        total = operands[0]
        for operand in operands[1:]:
            total = getattr(call.torch, name)(total, operand)
        return total

    return run


def _arithmetic_in_numpy(name: str) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        by = call.attrs["by"]
        return functools.reduce(getattr(call.np, name), call.inputs if by is None else (*call.inputs, by))

    return run


def _prelu_rule(context: Context) -> tuple[Value, ...]:
    weight = context.params["weight"]
    if len(weight) == 1 and weight[0].size == 1:
        context.use("weight", 0, [(Fixed(1, "one slope for all units"), Role.DATA)])
        context.layouts.freeze(weight[0], "one slope for all units")
        return (context.inputs[0],)
    return notation("b c ..., c -> b c ...", ("weight",))(context)


def _prelu(call: Call) -> Any:
    return call.functional.prelu(call.inputs[0], call.params["weight"])


def _prelu_in_numpy(call: Call) -> Any:
    x, slope = call.inputs[0], call.params["weight"]
    if x.ndim > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return call.np.where(x > 0, x, x * slope)


def _scale_rule(context: Context) -> tuple[Value, ...]:
    """A learnt vector along the unit axis."""
    source, weight = context.inputs[0], context.params["weight"]
    if len(weight) != 1:
        context.fail(f"its weight {[axis.size for axis in weight]} should have one axis, that of the units")
    axis = weight[0]
    try:
        context.layouts.unify(source.axes[source.unit_axis], axis)
    except SizeMismatch as clash:
        context.fail(f"its input has {clash.left.size} units, its weight {clash.right.size}")
    context.use("weight", 0, [(axis, Role.PER_UNIT)])
    return (source,)


def _root_scale_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    context.effect("root_scale", source.axes[source.unit_axis], source.unit_axis)
    return (source,)


def _scale(call: Call) -> Any:
    shape = [1] * call.inputs[0].ndim
    shape[call.outputs[0].unit_axis] = -1
    return call.inputs[0] * call.params["weight"].reshape(shape)


def _root_scale(call: Call) -> Any:
    return call.inputs[0] * call.inputs[0].shape[call.unit_axis] ** 0.5


def _op(
    name: str,
    run: Callable[[Call], Any],
    known: Bounds,
    fresh: Fresh,
    doc: str,
    attrs: dict[str, Attr] | None = None,
    multiples: Multiples = "none",
) -> Op:
    numpy = run if run is _identity else _in_numpy(name)
    return Op(
        name=name,
        rule=_same,
        run=run,
        bounds=known,
        fresh=fresh,
        attrs=attrs or {},
        multiples=multiples,
        numpy=numpy,
        doc=doc,
    )


def _number(default: float) -> Attr:
    return Attr(default, NUMBER)


def _plain_doc(name: str, fresh: Fresh) -> str:
    return f"{name}, f(0) = 0." if fresh == "zero" else f"{name}."


_SIMPLE = (
    *(
        _op(name, make(name), known, fresh, _plain_doc(name, fresh), None, kind)
        for make, table in ((_activation, _ACTIVATIONS), (_unary, _UNARY))
        for name, fresh, kind, known in table
    ),
)

_WITH_SETTINGS = (
    _op(
        "gelu",
        _activation("gelu", "approximate"),
        bounds.valley(-0.752, -0.1701),
        "zero",
        "gelu.",
        {"approximate": Attr("none", TEXT)},
    ),
    _op(
        "leaky_relu",
        _activation("leaky_relu", "negative_slope"),
        bounds.bent,
        "zero",
        "x, or x times a slope below 0.",
        {"negative_slope": _number(0.01)},
        "positive",
    ),
    _op(
        "hardtanh",
        _activation("hardtanh", "min_val", "max_val"),
        bounds.rising(exact=True),
        "none",
        "Between two numbers.",
        {"min_val": _number(-1.0), "max_val": _number(1.0)},
    ),
    _op(
        "hardshrink",
        _activation("hardshrink", "lambd"),
        bounds.rising(exact=True),
        "zero",
        "0 near 0, else x.",
        {"lambd": _number(0.5)},
        "odd",
    ),
    _op(
        "softshrink",
        _activation("softshrink", "lambd"),
        bounds.rising(),
        "zero",
        "0 near 0, else towards it.",
        {"lambd": _number(0.5)},
        "odd",
    ),
    _op("elu", _activation("elu", "alpha"), bounds.bent, "zero", "elu.", {"alpha": _number(1.0)}),
    _op("celu", _activation("celu", "alpha"), bounds.bent, "zero", "celu.", {"alpha": _number(1.0)}),
    _op(
        "softplus",
        _activation("softplus", "beta", "threshold"),
        bounds.soft,
        "none",
        "softplus.",
        {"beta": _number(1.0), "threshold": _number(20.0)},
    ),
    _op(
        "threshold",
        _activation("threshold", "threshold", "value"),
        bounds.threshold,
        "none",
        "x above the threshold, else the value.",
        {"threshold": _number(0.0), "value": _number(0.0)},
    ),
    _op(
        "rrelu",
        _rrelu,
        bounds.bent,
        "zero",
        "As in evaluation.",
        {"lower": _number(1 / 8), "upper": _number(1 / 3)},
        "positive",
    ),
    _op(
        "clamp",
        lambda call: call.inputs[0].clamp(call.attrs["min"], call.attrs["max"]),
        bounds.rising(exact=True),
        "none",
        "Between two numbers.",
        {"min": Attr(None, NUMBER), "max": Attr(None, NUMBER)},
    ),
    _op(
        "pow", lambda call: call.inputs[0].pow(call.attrs["by"]), bounds.power, "none", "A power.", {"by": _number(2.0)}
    ),
    *(
        _op(name, _identity, bounds.moves, "mean", "Nothing, as in evaluation.", {"p": _number(0.5)}, "any")
        for name in (
            "dropout",
            "dropout1d",
            "dropout2d",
            "dropout3d",
            "alpha_dropout",
            "feature_alpha_dropout",
        )
    ),
    _op("identity", _identity, bounds.moves, "mean", "Nothing.", None, "any"),
    _op("per_unit", _per_unit, bounds.nothing, "none", "Some function of each unit alone; which one is not known."),
)

MultiplesOf = Callable[[Node, Sequence[bool]], Multiples]


def _sum_multiples(node: Node, held: Sequence[bool]) -> Multiples:
    """What is added to units must be of units too."""
    return "any" if all(held) and not node.attrs.get("by") else "none"


def product_multiples(_: Node, held: Sequence[bool]) -> Multiples:
    """Linear in each factor, not in two at once."""
    return "any" if sum(held) == 1 else "none"


def _quotient_multiples(_: Node, held: Sequence[bool]) -> Multiples:
    return "any" if held[0] and not any(held[1:]) else "none"


def _extreme_multiples(node: Node, held: Sequence[bool]) -> Multiples:
    """A number that they are compared with is the same for all units; only zero is so for their multiples too."""
    return "positive" if all(held) and not node.attrs.get("by") else "none"


_ARITHMETIC: tuple[tuple[str, str, Bounds, Fresh, MultiplesOf, str], ...] = (
    ("add", "add", bounds.add, "mean", _sum_multiples, "The sum that couples layers."),
    ("sub", "subtract", bounds.sub, "mean", _sum_multiples, "A difference."),
    ("mul", "multiply", bounds.mul, "product", product_multiples, "A product unit by unit: gates."),
    ("div", "divide", bounds.div, "none", _quotient_multiples, "A quotient unit by unit."),
    ("maximum", "maximum", bounds.larger, "zero", _extreme_multiples, "The larger, unit by unit."),
    ("minimum", "minimum", bounds.smaller, "zero", _extreme_multiples, "The smaller, unit by unit."),
)

OPS = (
    *_SIMPLE,
    *_WITH_SETTINGS,
    *(
        Op(
            name=name,
            rule=_arithmetic_rule,
            run=_arithmetic(name),
            numpy=_arithmetic_in_numpy(in_numpy),
            attrs={"by": Attr(None, NUMBER)},
            inputs=(1, None),
            bounds=known,
            fresh=fresh,
            multiples=multiples,
            doc=doc,
        )
        for name, in_numpy, known, fresh, multiples, doc in _ARITHMETIC
    ),
    Op(
        name="prelu",
        rule=_prelu_rule,
        run=_prelu,
        numpy=_prelu_in_numpy,
        bounds=bounds.bent,
        params=(Param("weight", "quarter"),),
        fresh="zero",
        multiples="positive",
        doc="A learnt slope below 0, one for each channel or one for all.",
    ),
    Op(
        name="scale",
        rule=_scale_rule,
        run=_scale,
        numpy=_scale,
        bounds=norm_bounds.scaled,
        params=(Param("weight", "one"),),
        fresh="zero",
        multiples="any",
        doc="Times a learnt vector along the units (layer scale).",
    ),
    Op(
        name="root_scale",
        rule=_root_scale_rule,
        run=_root_scale,
        numpy=_root_scale,
        bounds=bounds.adding(lambda _: 1),
        fresh="mean",
        multiples="any",
        doc="Times the root of the number of units, as Gemma scales its embeddings; over a width that is an effect.",
    ),
)
