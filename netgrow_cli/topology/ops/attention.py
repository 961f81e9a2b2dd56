"""Products of activations: attention, matmul, einsum.

A letter that two activations share and the result lacks is summed over without weights in between. Such a width
has no reader, which is an effect ("contraction", "attention"): see `surgery.carriers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import CannotAlign, Layout, SizeMismatch
from netgrow_cli.topology.ops.base import BOOL, INT, NUMBER, REQUIRED, TEXT, Attr, Call, Multiples, Op
from netgrow_cli.topology.ops.elementwise import broadcast, product_multiples
from netgrow_cli.topology.rule import Context, Value


def contracted(op: str, attrs: Mapping[str, Any], ranks: Sequence[int], axis: int) -> list[tuple[int, int]]:
    """The operands that are summed over together with an axis of the first one, and the axis of each.

    attrs: the node's settings. ranks: how many axes each operand has.
    """
    if op == "attention":
        return [(0, ranks[0] - 1), (1, ranks[1] - 1)]
    if op == "matmul":
        return [(0, ranks[0] - 1), (1, max(ranks[1] - 2, 0))]
    patterns = attrs["equation"].replace(" ", "").partition("->")[0].split(",")
    letter = patterns[0][axis]
    return [(n, place) for n, pattern in enumerate(patterns) for place, found in enumerate(pattern) if found == letter]


def summed_size(op: str, attrs: Mapping[str, Any], shape: Sequence[int]) -> int:
    """How many units of its first operand, of that shape, an operation sums over."""
    if op != "einsum":
        return shape[-1]
    first, _, result = attrs["equation"].replace(" ", "").partition("->")
    return math.prod(size for letter, size in zip(first, shape, strict=False) if letter not in result)


def follows_size(op: str, attrs: Mapping[str, Any]) -> bool:
    """Whether the result is divided by the root of the size that is summed over, which the model's code computes."""
    return attrs.get("scale") is None if op == "attention" else bool(attrs.get("scaled"))


def _agree(context: Context, one: Layout, other: Layout, what: str) -> None:
    try:
        context.layouts.unify(one, other)
    except SizeMismatch as clash:
        context.fail(f"{what} have {clash.left.size} and {clash.right.size}, which must agree", "from")


def _matmul_rule(context: Context) -> tuple[Value, ...]:
    """... i j, ... j k -> ... i k; a vector has no i, or no k."""
    left, right = context.inputs
    if not left.axes or not right.axes:
        context.fail("it multiplies matrices; an operand has no axes", "from")
    inner = left.axes[-1]
    position = len(right.axes) - 2 if len(right.axes) > 1 else 0
    _agree(context, inner, right.axes[position], "the axes that are summed over")
    context.effect("contraction", inner, len(left.axes) - 1)
    rows = (left.axes[-2],) if len(left.axes) > 1 else ()
    columns = (right.axes[-1],) if len(right.axes) > 1 else ()
    outer = broadcast(context, [Value(left.axes[:-2], 0), Value(right.axes[:-2], 0)]) if _batched(left, right) else ()
    axes = tuple(context.layouts.resolve(axis) for axis in (*outer, *rows, *columns))
    return (Value(axes, max(len(axes) - 1, 0)),)


def _batched(left: Value, right: Value) -> bool:
    return len(left.axes) > 2 or len(right.axes) > 2


def _einsum_rule(context: Context) -> tuple[Value, ...]:
    terms, _, result = context.attr("equation").replace(" ", "").partition("->")
    patterns = terms.split(",")
    if "." in terms or len(patterns) != len(context.inputs):
        context.fail(f"equation {context.attr('equation')!r} does not fit its {len(context.inputs)} operands")
    if not set(result) <= set(terms) - {","} or len(set(result)) != len(result):
        context.fail(f"equation {context.attr('equation')!r}: its result is not made of letters of its operands")
    letters: dict[str, Layout] = {}
    for pattern, value in zip(patterns, context.inputs, strict=True):
        if len(pattern) != len(value.axes):
            context.fail(f"{pattern!r} of its equation does not fit an operand of {list(value.shape)}")
        for letter, axis in zip(pattern, value.axes, strict=True):
            _agree(context, letters.setdefault(letter, axis), axis, f"axes {letter!r}")
    for position, letter in enumerate(patterns[0]):
        if letter not in result:
            context.effect("contraction", letters[letter], position)
    if context.attr("scaled") and len(set(patterns[0]) - set(result)) != 1:
        context.fail(f"scaled: equation {context.attr('equation')!r} does not sum over one letter of its first operand")
    for letter in letters:
        if letter not in result and letter not in patterns[0]:
            context.layouts.freeze(letters[letter], f"summed over by einsum {context.node.name}")
    axes = tuple(context.layouts.resolve(letters[letter]) for letter in result)
    return (Value(axes, max(len(axes) - 1, 0)),)


def _attention_rule(context: Context) -> tuple[Value, ...]:
    """... h q d, ... h k d, ... h k e, (... h q k)? -> ... h q e; keys and values may have fewer heads."""
    query, key, value = context.inputs[:3]
    if min(len(operand.axes) for operand in (query, key, value)) < 3:
        context.fail("query, key and value need axes (..., heads, positions, size)", "from")
    _agree(context, query.axes[-1], key.axes[-1], "query and key")
    _agree(context, key.axes[-2], value.axes[-2], "the positions of keys and values")
    _agree(context, key.axes[-3], value.axes[-3], "the heads of keys and values")
    if context.attr("window") is not None and context.attr("window") < 1:
        context.fail(f"window: {context.attr('window')} should be at least 1", "attr:window")
    outer = broadcast(context, [Value(operand.axes[:-3], 0) for operand in (query, key, value)])
    _heads(context, query.axes[-3], key.axes[-3])
    context.effect("attention", query.axes[-1], len(query.axes) - 1)
    for operand in (query, key, value):
        context.layouts.freeze(operand.axes[-2], "positions")
    if len(context.inputs) > 3:
        scores = Value((*outer, *query.axes[-3:-1], key.axes[-2]), 0)
        broadcast(context, [scores, context.inputs[3]])
    resolve = context.layouts.resolve
    axes = tuple(resolve(axis) for axis in (*outer, *query.axes[-3:-1], value.axes[-1]))
    return (Value(axes, len(axes) - 1),)


def _heads(context: Context, queries: Layout, keys: Layout) -> None:
    """As many heads of keys as of queries, or one for each group of query heads."""
    if queries.size == keys.size:
        context.layouts.unify(queries, keys)
        return
    if keys.size == 0 or queries.size % keys.size:
        context.fail(f"{queries.size} heads of queries do not share {keys.size} heads of keys", "from")
    try:
        groups, _ = context.layouts.factor(queries, (keys.size, queries.size // keys.size), ("kv_heads", "groups"))
        context.layouts.unify(groups, keys)
    except CannotAlign as clash:
        context.layouts.freeze(queries, f"attention {context.node.name}: {clash}")
        context.layouts.freeze(keys, f"attention {context.node.name}: {clash}")


def _attention(call: Call) -> Any:
    query, key, value = call.inputs[:3]
    mask = call.inputs[3] if len(call.inputs) > 3 else None
    if mask is not None and mask.is_floating_point():
        mask = mask.to(query.dtype)
    shared = query.shape[-3] // key.shape[-3]
    if shared > 1:
        key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    if call.attrs["window"] is None and call.attrs["softcap"] is None:
        return call.functional.scaled_dot_product_attention(
            query, key, value, mask, 0.0, call.attrs["is_causal"], scale=call.attrs["scale"]
        )
    scale = query.shape[-1] ** -0.5 if call.attrs["scale"] is None else call.attrs["scale"]
    scores, cap = query @ key.transpose(-2, -1) * scale, call.attrs["softcap"]
    if cap is not None:
        scores = call.torch.tanh(scores / cap) * cap
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -call.torch.inf)
    return scores.masked_fill(~_seen(call, scores), -call.torch.inf).softmax(-1) @ value


def _seen(call: Call, scores: Any) -> Any:
    """Which positions each one sees, by `is_causal` and `window`."""
    queries, keys = (call.torch.arange(size, device=scores.device) for size in scores.shape[-2:])
    back = queries[:, None] - keys
    seen = back >= 0 if call.attrs["is_causal"] else back == back
    return seen if call.attrs["window"] is None else seen & (back < call.attrs["window"])


def _einsum(call: Call) -> Any:
    return _scaled(call, call.torch.einsum(call.attrs["equation"], *_alike(call.inputs)))


def _matmul(call: Call) -> Any:
    return _scaled(call, call.torch.matmul(*_alike(call.inputs)))


def _scaled(call: Call, result: Any) -> Any:
    if not call.attrs["scaled"]:
        return result
    return result / math.sqrt(summed_size(call.node.op, call.attrs, call.inputs[0].shape))


def _alike(operands: Sequence[Any]) -> Sequence[Any]:
    """Constants come in their own dtype; they are computed with in the network's."""
    first = next((operand for operand in operands if operand.is_floating_point()), operands[0])
    return [operand.to(first.dtype) if operand.is_floating_point() else operand for operand in operands]


def _attention_multiples(_: Node, held: Sequence[bool]) -> Multiples:
    """Linear in the values."""
    return "any" if [n for n, holds in enumerate(held) if holds] == [2] else "none"


_SCALED = {"scaled": Attr(False, BOOL)}

OPS = (
    Op(
        name="matmul",
        rule=_matmul_rule,
        run=_matmul,
        attrs=_SCALED,
        inputs=(2, 2),
        multiples=product_multiples,
        doc="Product of two activations; `scaled`: divided by the root of the size that is summed over.",
    ),
    Op(
        name="einsum",
        rule=_einsum_rule,
        run=_einsum,
        attrs={"equation": Attr(REQUIRED, TEXT), **_SCALED},
        inputs=(1, None),
        multiples=product_multiples,
        doc="Product of activations by an equation; `scaled` as for matmul.",
    ),
    Op(
        name="attention",
        rule=_attention_rule,
        run=_attention,
        attrs={
            "is_causal": Attr(False, BOOL),
            "scale": Attr(None, NUMBER),
            "window": Attr(None, INT),
            "softcap": Attr(None, NUMBER),
        },
        inputs=(3, 4),
        multiples=_attention_multiples,
        doc="softmax(q k^T scale + mask) v over (..., heads, positions, size); from: [q, k, v] or with a mask.",
    ),
)
