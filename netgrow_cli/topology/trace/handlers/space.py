"""Pooling, upsampling, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netgrow_cli.topology.trace.convert import Converter, Handler
from netgrow_cli.topology.trace.reading import argument, one_if_equal, operation, shape


def _window(op: str, names: Sequence[tuple[str, Any]]) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        attrs = {}
        for position, (name, default) in enumerate(names, 1):
            value = argument(node, position, name, default)
            value = one_if_equal(value)
            if value in (None, []) or value == default:
                continue
            attrs[name] = value
        made.put(node, op, [node.args[0]], attrs=attrs)
        return True

    return handler


_MAX = (("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False))
_AVERAGE = (
    ("kernel_size", None),
    ("stride", None),
    ("padding", 0),
    ("ceil_mode", False),
    ("count_include_pad", True),
)


def _adaptive(op: str) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        made.put(node, op, [node.args[0]], attrs={"output_size": one_if_equal(list(node.args[1]))})
        return True

    return handler


def _resample(made: Converter, node: Any) -> bool:
    source = node.args[0]
    before, after = shape(source), shape(node)
    operands, arguments, keywords = made.recorded(node)
    if len(operands) != 1 or before[:2] != after[:2]:
        return False
    attrs = {"call": str(node.target), "args": arguments, "positions": after[2:]}
    made.put(node, "resample", [source], attrs={**attrs, **({"kwargs": keywords} if keywords else {})})
    return True


def _woven(made: Converter, node: Any, apart: Sequence[int], axes: Sequence[int], after: Sequence[int]) -> bool:
    """An axis taken apart, the parts in another order, and some of them put together again."""
    grid = made.extra(node, "apart", "reshape", [made.ref(node.args[0])], {"shape": list(apart)})
    turned = made.extra(node, "turned", "permute", [grid], {"axes": list(axes)})
    made.put_refs(node, "reshape", [turned], {"shape": list(after)})
    return True


def _pixel_shuffle(made: Converter, node: Any) -> bool:
    """(b, c r r, h, w) becomes (b, c, h r, w r)."""
    factor, before = node.args[1], shape(node.args[0])
    if len(before) != 4:
        return False
    high, wide = before[2:]
    after = [0, 0, high * factor, wide * factor]
    return _woven(made, node, [0, -1, factor, factor, high, wide], [0, 1, 4, 2, 5, 3], after)


def _pixel_unshuffle(made: Converter, node: Any) -> bool:
    """(b, c, h r, w r) becomes (b, c r r, h, w)."""
    factor, after = node.args[1], shape(node)
    if len(after) != 4:
        return False
    high, wide = after[2:]
    return _woven(made, node, [0, 0, high, factor, wide, factor], [0, 1, 3, 5, 2, 4], [0, -1, high, wide])


def _channel_shuffle(made: Converter, node: Any) -> bool:
    """(b, g c, ...) becomes (b, c g, ...)."""
    space = list(shape(node))[2:]
    axes = [0, 2, 1, *range(3, 3 + len(space))]
    return _woven(made, node, [0, node.args[1], -1, *space], axes, [0, -1, *space])


def _pad(made: Converter, node: Any) -> bool:
    amounts = list(node.args[1])
    mode = argument(node, 2, "mode", "constant") if operation(node.target) == "pad" else "constant"
    value = argument(node, 3 if operation(node.target) == "pad" else 2, "value", 0.0)
    if not any(amounts):
        made.alias(node, node.args[0])
        return True
    while amounts[-2:] == [0, 0]:
        del amounts[-2:]
    made.put(node, "pad", [node.args[0]], attrs={"padding": amounts, "mode": mode, "value": float(value or 0.0)})
    return True


_FOLDING = ("kernel_size", "dilation", "padding", "stride")
_FOLDING_DEFAULTS = {"dilation": 1, "padding": 0, "stride": 1}


def _folding(op: str, names: tuple[str, ...]) -> Handler:
    def handler(made: Converter, node: Any) -> bool:
        found = {name: one_if_equal(value) for name, value in zip(names, node.args[1:], strict=True)}
        attrs = {name: value for name, value in found.items() if _FOLDING_DEFAULTS.get(name) != value}
        if len(shape(node.args[0])) != (4 if op == "unfold" else 3):
            return False
        made.put(node, op, [node.args[0]], attrs=attrs)
        return True

    return handler


HANDLERS: dict[str, Handler] = {
    **{f"max_pool{dims}d": _window(f"max_pool{dims}d", _MAX) for dims in (1, 2, 3)},
    **{f"avg_pool{dims}d": _window(f"avg_pool{dims}d", _AVERAGE) for dims in (1, 2, 3)},
    **{f"adaptive_avg_pool{dims}d": _adaptive(f"adaptive_avg_pool{dims}d") for dims in (1, 2, 3)},
    **{f"adaptive_max_pool{dims}d": _adaptive(f"adaptive_max_pool{dims}d") for dims in (1, 2, 3)},
    **dict.fromkeys(
        (
            "upsample_bilinear2d",
            "upsample_nearest2d",
            "upsample_bicubic2d",
            "upsample_linear1d",
            "upsample_nearest1d",
            "upsample_trilinear3d",
            "upsample_nearest3d",
            "upsample_nearest_exact2d",
        ),
        _resample,
    ),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "im2col": _folding("unfold", _FOLDING),
    "col2im": _folding("fold", ("output_size", *_FOLDING)),
    "pad": _pad,
    "constant_pad_nd": _pad,
}
