"""Operations on each element alone: activations, arithmetic between layers, dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import Fixed, Layout, SizeMismatch
from netgrow_cli.topology.ops.base import NUMBER, TEXT, Attr, Call, Fresh, Multiples, Op, Param
from netgrow_cli.topology.rule import Context, Role, Value, notation

# Activations of torch.nn.functional without settings.
_ACTIVATIONS: tuple[tuple[str, Fresh, Multiples], ...] = (
    ("relu", "zero", "positive"),
    ("relu6", "zero", "none"),
    ("selu", "zero", "none"),
    ("silu", "zero", "none"),
    ("mish", "zero", "none"),
    ("tanh", "zero", "odd"),
    ("hardswish", "zero", "none"),
    ("softsign", "zero", "odd"),
    ("tanhshrink", "zero", "odd"),
    ("sigmoid", "none", "none"),
    ("hardsigmoid", "none", "none"),
    ("logsigmoid", "none", "none"),
)
# torch's own functions of one argument.
_UNARY: tuple[tuple[str, Fresh, Multiples], ...] = (
    ("abs", "zero", "positive"),
    ("neg", "zero", "any"),
    ("sign", "zero", "odd"),
    ("square", "zero", "none"),
    ("sqrt", "zero", "none"),
    ("sin", "zero", "odd"),
    ("tan", "zero", "odd"),
    ("asin", "zero", "odd"),
    ("atan", "zero", "odd"),
    ("sinh", "zero", "odd"),
    ("asinh", "zero", "odd"),
    ("erf", "zero", "odd"),
    ("expm1", "zero", "none"),
    ("log1p", "zero", "none"),
    ("floor", "zero", "none"),
    ("ceil", "zero", "none"),
    ("round", "zero", "odd"),
    ("trunc", "zero", "odd"),
    ("exp", "none", "none"),
    ("exp2", "none", "none"),
    ("log", "none", "none"),
    ("log2", "none", "none"),
    ("log10", "none", "none"),
    ("reciprocal", "none", "odd"),
    ("rsqrt", "none", "none"),
    ("cos", "none", "none"),
    ("cosh", "none", "none"),
    ("erfc", "none", "none"),
)


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


def _prelu_rule(context: Context) -> tuple[Value, ...]:
    weight = context.params["weight"]
    if len(weight) == 1 and weight[0].size == 1:
        context.use("weight", 0, [(Fixed(1, "one slope for all units"), Role.DATA)])
        context.layouts.freeze(weight[0], "one slope for all units")
        return (context.inputs[0],)
    return notation("b c ..., c -> b c ...", ("weight",))(context)


def _prelu(call: Call) -> Any:
    return call.functional.prelu(call.inputs[0], call.params["weight"])


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


def _op(
    name: str,
    run: Callable[[Call], Any],
    fresh: Fresh,
    doc: str,
    attrs: dict[str, Attr] | None = None,
    multiples: Multiples = "none",
) -> Op:
    return Op(name=name, rule=_same, run=run, fresh=fresh, attrs=attrs or {}, multiples=multiples, doc=doc)


def _number(default: float) -> Attr:
    return Attr(default, NUMBER)


def _plain_doc(name: str, fresh: Fresh) -> str:
    return f"{name}, f(0) = 0." if fresh == "zero" else f"{name}."


_SIMPLE = (
    *(_op(name, _activation(name), fresh, _plain_doc(name, fresh), None, kind) for name, fresh, kind in _ACTIVATIONS),
    *(_op(name, _unary(name), fresh, _plain_doc(name, fresh), None, kind) for name, fresh, kind in _UNARY),
)

_WITH_SETTINGS = (
    _op("gelu", _activation("gelu", "approximate"), "zero", "gelu.", {"approximate": Attr("none", TEXT)}),
    _op(
        "leaky_relu",
        _activation("leaky_relu", "negative_slope"),
        "zero",
        "x, or x times a slope below 0.",
        {"negative_slope": _number(0.01)},
        "positive",
    ),
    _op(
        "hardtanh",
        _activation("hardtanh", "min_val", "max_val"),
        "none",
        "Between two numbers.",
        {"min_val": _number(-1.0), "max_val": _number(1.0)},
    ),
    _op("hardshrink", _activation("hardshrink", "lambd"), "zero", "0 near 0, else x.", {"lambd": _number(0.5)}, "odd"),
    _op(
        "softshrink",
        _activation("softshrink", "lambd"),
        "zero",
        "0 near 0, else towards it.",
        {"lambd": _number(0.5)},
        "odd",
    ),
    _op("elu", _activation("elu", "alpha"), "zero", "elu.", {"alpha": _number(1.0)}),
    _op("celu", _activation("celu", "alpha"), "zero", "celu.", {"alpha": _number(1.0)}),
    _op(
        "softplus",
        _activation("softplus", "beta", "threshold"),
        "none",
        "softplus.",
        {"beta": _number(1.0), "threshold": _number(20.0)},
    ),
    _op(
        "threshold",
        _activation("threshold", "threshold", "value"),
        "none",
        "x above the threshold, else the value.",
        {"threshold": _number(0.0), "value": _number(0.0)},
    ),
    _op("rrelu", _rrelu, "zero", "As in evaluation.", {"lower": _number(1 / 8), "upper": _number(1 / 3)}, "positive"),
    _op(
        "clamp",
        lambda call: call.inputs[0].clamp(call.attrs["min"], call.attrs["max"]),
        "none",
        "Between two numbers.",
        {"min": Attr(None, NUMBER), "max": Attr(None, NUMBER)},
    ),
    _op("pow", lambda call: call.inputs[0].pow(call.attrs["by"]), "none", "A power.", {"by": _number(2.0)}),
    *(
        _op(name, _identity, "mean", "Nothing, as in evaluation.", {"p": _number(0.5)}, "any")
        for name in (
            "dropout",
            "dropout1d",
            "dropout2d",
            "dropout3d",
            "alpha_dropout",
            "feature_alpha_dropout",
        )
    ),
    _op("identity", _identity, "mean", "Nothing.", None, "any"),
    _op("per_unit", _per_unit, "none", "Some function of each unit alone; which one is not known."),
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


_ARITHMETIC: tuple[tuple[str, Fresh, MultiplesOf, str], ...] = (
    ("add", "mean", _sum_multiples, "The sum that couples layers."),
    ("sub", "mean", _sum_multiples, "A difference."),
    ("mul", "product", product_multiples, "A product unit by unit: gates."),
    ("div", "none", _quotient_multiples, "A quotient unit by unit."),
    ("maximum", "zero", _extreme_multiples, "The larger, unit by unit."),
    ("minimum", "zero", _extreme_multiples, "The smaller, unit by unit."),
)

OPS = (
    *_SIMPLE,
    *_WITH_SETTINGS,
    *(
        Op(
            name=name,
            rule=_arithmetic_rule,
            run=_arithmetic(name),
            attrs={"by": Attr(None, NUMBER)},
            inputs=(1, None),
            fresh=fresh,
            multiples=multiples,
            doc=doc,
        )
        for name, fresh, multiples, doc in _ARITHMETIC
    ),
    Op(
        name="prelu",
        rule=_prelu_rule,
        run=_prelu,
        params=(Param("weight", "quarter"),),
        fresh="zero",
        multiples="positive",
        doc="A learnt slope below 0, one for each channel or one for all.",
    ),
    Op(
        name="scale",
        rule=_scale_rule,
        run=lambda call: call.inputs[0] * _along(call, call.params["weight"]),
        params=(Param("weight", "one"),),
        fresh="zero",
        multiples="any",
        doc="Times a learnt vector along the units (layer scale).",
    ),
    Op(
        name="root_scale",
        rule=_root_scale_rule,
        run=lambda call: call.inputs[0] * call.inputs[0].shape[call.unit_axis] ** 0.5,
        fresh="mean",
        multiples="any",
        doc="Times the root of the number of units, as Gemma scales its embeddings; over a width that is an effect.",
    ),
)


def _along(call: Call, vector: Any) -> Any:
    shape = [1] * call.inputs[0].dim()
    shape[call.outputs[0].unit_axis] = -1
    return vector.reshape(shape)
