"""Operations with parameters."""

from __future__ import annotations

from typing import Any

from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.trace.convert import Converter, Handler
from netgrow_cli.topology.trace.derived import Weight, weight_of
from netgrow_cli.topology.trace.reading import argument, one_if_equal, operation, shape


def _linear(made: Converter, node: Any) -> bool:
    source, weight = node.args[:2]
    bias, known = argument(node, 2, "bias"), linear_weight(made, weight)
    if known is None or (bias is not None and made.tensor(bias) is None):
        return False
    made.put(node, f"{known.prefix}linear", [source], {**known.params, "bias": bias}, known.attrs)
    return True


def linear_weight(made: Converter, node: Any) -> Weight | None:
    """What a node is as the weight of a linear layer; None where there is no rule for it."""
    known = weight_of(made, node)
    return known if known is not None and f"{known.prefix}linear" in OPS else None


def _linear_with_sum(made: Converter, node: Any) -> bool:
    """A bias that is computed is a sum of its own."""
    source, weight = node.args[:2]
    bias = argument(node, 2, "bias")
    if bias is None or made.tensor(bias) is not None:
        return _linear(made, node)
    if made.tensor(weight) is None:
        return False
    product = made.extra(node, "product", "linear", [made.ref(source)], {}, {"weight": weight})
    made.put_refs(node, "add", [product, made.ref(bias)], {})
    return True


def _addmm(made: Converter, node: Any) -> bool:
    """bias + x W, with W as (in, out)."""
    bias, source, weight = node.args[:3]
    if made.tensor(weight) is None or made.tensor(bias) is None or len(node.args) > 3:
        return False
    made.put(node, "linear_io", [source], {"weight": weight, "bias": bias})
    return True


def _convolution(dims: int) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        source, weight = node.args[:2]
        bias, known = argument(node, 2, "bias"), weight_of(made, weight)
        if known is None or (bias is not None and made.tensor(bias) is None):
            return False
        attrs = dict(known.attrs)
        for position, (name, default) in enumerate((("stride", 1), ("padding", 0), ("dilation", 1)), 3):
            value = argument(node, position, name, default)
            value = one_if_equal(value)
            if value != default:
                attrs[name] = value
        if len(shape(source)) != dims + 2:
            return False
        made.put(node, f"{known.prefix}conv{dims}d", [source], {**known.params, "bias": bias}, attrs)
        return True

    return handler


def _transposed(dims: int) -> Handler:
    names = (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1))

    def handler(made: Converter, node: Any) -> bool:
        source, weight = node.args[:2]
        bias, known = argument(node, 2, "bias"), weight_of(made, weight)
        if known is None or f"{known.prefix}conv_transpose{dims}d" not in OPS or known.attrs:
            return False
        found = {
            name: one_if_equal(argument(node, position, name, default))
            for position, (name, default) in enumerate(names, 3)
        }
        attrs = {name: found[name] for name, default in names if found[name] != default}
        made.put(node, f"{known.prefix}conv_transpose{dims}d", [source], {**known.params, "bias": bias}, attrs)
        return True

    return handler


def _batch_norm(made: Converter, node: Any) -> bool:
    source, weight, bias, mean, variance, training, _, eps = node.args[:8]
    if training or made.tensor(mean) is None:
        return False
    params = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    made.put(node, "batch_norm", [source], params, {} if eps == 1e-5 else {"eps": eps})
    return True


def _legit_batch_norm(made: Converter, node: Any) -> bool:
    source, weight, bias, mean, variance, _, eps = node.args[:7]
    params = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    made.put(node, "batch_norm", [source], params, {} if eps == 1e-5 else {"eps": eps})
    return True


def _instance_norm(made: Converter, node: Any) -> bool:
    source, weight, bias, mean, variance, by_input, _, eps = node.args[:8]
    statistics = {} if by_input else {"running_mean": mean, "running_var": variance}
    made.put(node, "instance_norm", [source], {"weight": weight, "bias": bias, **statistics}, {"eps": eps})
    return True


def _layer_norm(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        source, shape = node.args[:2]
        weight = argument(node, 2, "weight")
        bias = argument(node, 3, "bias") if op == "layer_norm" else None
        eps = argument(node, 4 if op == "layer_norm" else 3, "eps", 1e-5)
        if weight is not None and made.tensor(weight) is None:
            return False
        if eps is None:
            import torch

            eps = torch.finfo(source.meta["val"].dtype).eps
        attrs = {"eps": eps, **({"dims": len(shape)} if weight is None and len(shape) > 1 else {})}
        if weight is None:
            made.normalizes(node, shape)
        made.put(node, op, [source], {"weight": weight, "bias": bias}, attrs)
        return True

    return handler


def _group_norm(made: Converter, node: Any) -> bool:
    source, groups = node.args[:2]
    weight, bias, eps = (argument(node, n, name) for n, name in ((2, "weight"), (3, "bias"), (4, "eps")))
    attrs = {"groups": groups, "eps": 1e-5 if eps is None else eps}
    made.put(node, "group_norm", [source], {"weight": weight, "bias": bias}, attrs)
    return True


def _embedding(made: Converter, node: Any) -> bool:
    weight, index = node.args[:2]
    if made.tensor(weight) is None:
        return False
    made.put(node, "embedding", [index], {"weight": weight})
    return True


def _prelu(made: Converter, node: Any) -> bool:
    slope = made.number(node.args[1])
    if slope is not None and slope.numel() == 1:  # (the code's own)
        made.put(node, "leaky_relu", [node.args[0]], attrs={"negative_slope": float(slope)})
    else:
        made.put(node, "prelu", [node.args[0]], {"weight": node.args[1]})
    return True


def _recurrent(op: str, outputs: int, **settings: Any) -> Handler:
    """torch.nn's recurrent layers, which find their parameters by name; from zeros, or from states that are given."""

    def handler(made: Converter, node: Any) -> bool:
        source, states, weights = node.args[:3]
        states = states if isinstance(states, (list, tuple)) else [states]
        names = [made.tensor(weight) for weight in weights]
        given = [] if all(_is_zero(made, state) for state in states) else states
        if None in names or (given and any("weight_hr" in str(name) for name in names)):
            return False
        module, _, first = str(names[0]).rpartition(".")
        if not module or first != "weight_ih_l0" or any(str(name).rpartition(".")[0] != module for name in names):
            return False
        attrs = {**settings, **({"batch_first": True} if node.args[8] else {})}
        params = {str(name).rpartition(".")[2]: weight for name, weight in zip(names, weights, strict=True)}
        made.put(node, op, [source, *given], params, attrs, outputs, module)
        return True

    return handler


def _is_zero(made: Converter, node: Any) -> bool:
    numbers = made.number(node)
    return operation(node.target) == "zeros" or (numbers is not None and not bool(numbers.any()))


HANDLERS: dict[str, Handler] = {
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "linear": _linear_with_sum,
    "addmm": _addmm,
    **{f"conv{dims}d": _convolution(dims) for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": _transposed(dims) for dims in (1, 2, 3)},
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _legit_batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm("layer_norm"),
    "rms_norm": _layer_norm("rms_norm"),
    "group_norm": _group_norm,
    "embedding": _embedding,
    "lstm": _recurrent("lstm", 3),
    "gru": _recurrent("gru", 2),
    "rnn_tanh": _recurrent("rnn", 2),
    "rnn_relu": _recurrent("rnn", 2, nonlinearity="relu"),
}
