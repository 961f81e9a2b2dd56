"""Where in a sequence something stands: rotary embeddings, and the indices that position tables are read with."""

from __future__ import annotations

from typing import Any

from netgrow_cli.topology.layout import CannotAlign, Fixed
from netgrow_cli.topology.ops.base import BOOL, INT, NUMBER, Attr, Call, Op
from netgrow_cli.topology.rule import Context, Value


def _rotary_rule(context: Context) -> tuple[Value, ...]:
    """... t (pairs rest): the pairs are turned by an angle for each position, so they stay where they are."""
    source = context.inputs[0]
    if len(source.axes) < 2:
        context.fail(f"it needs axes (..., positions, size); its input is {list(source.shape)}", "from")
    units = source.axes[-1]
    turned = units.size if context.attr("rotated") is None else context.attr("rotated")
    if not 0 < turned <= units.size or turned % 2:
        context.fail(f"rotated: {turned} should be an even number up to {units.size}", "attr:rotated")
    _check_frequencies(context, turned // 2)
    why = f"pairs that rotary {context.node.name} turns, each by its own frequency"
    try:
        pieces = context.layouts.cut(units, [turned] if turned < units.size else [])
    except CannotAlign as clash:
        pieces, why = (units,), f"rotary {context.node.name}: {clash}"
    context.layouts.freeze(pieces[0], why)
    context.layouts.freeze(source.axes[-2], "positions")
    return (source,)


def _check_frequencies(context: Context, pairs: int) -> None:
    for name in ("frequencies", "long_frequencies"):
        stated = context.attr(name)
        if stated is None:
            continue
        if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in stated):
            context.fail(f"{name}: should be numbers", f"attr:{name}")
        if len(stated) != pairs:
            context.fail(f"{name}: {len(stated)} numbers for {pairs} pairs", f"attr:{name}")
    if (context.attr("long_frequencies") is None) != (context.attr("longer_than") is None):
        context.fail("`long_frequencies` and `longer_than` go together", "attr:longer_than")


def _rotary(call: Call) -> Any:
    x, attrs, torch = call.inputs[0], call.attrs, call.torch
    turned = x.shape[-1] if attrs["rotated"] is None else attrs["rotated"]
    stated = attrs["frequencies"]
    if attrs["longer_than"] is not None and x.shape[-2] > attrs["longer_than"]:
        stated = attrs["long_frequencies"]
    if stated is None:
        powers = torch.arange(0, turned, 2, dtype=x.dtype, device=x.device) / turned
        frequencies = 1.0 / attrs["theta"] ** powers
    else:
        frequencies = torch.tensor(list(stated), dtype=x.dtype, device=x.device)
    positions = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)
    angles = positions[:, None] * (frequencies / attrs["stretch"])
    cos, sin = angles.cos() * attrs["amplitude"], angles.sin() * attrs["amplitude"]
    part, rest = x[..., :turned], x[..., turned:]
    if attrs["interleaved"]:
        one, other = part[..., 0::2], part[..., 1::2]
        part = torch.stack([one * cos - other * sin, other * cos + one * sin], -1).flatten(-2)
    else:
        one, other = part.chunk(2, -1)
        part = torch.cat([one * cos - other * sin, other * cos + one * sin], -1)
    return torch.cat([part, rest], -1)


def _positions_rule(context: Context) -> tuple[Value, ...]:
    source = context.inputs[0]
    if len(source.axes) < 2:
        context.fail(f"it needs axes (batch, positions); its input is {list(source.shape)}", "from")
    if context.attr("skip") is None:
        return (Value((Fixed(source.axes[1].size, "positions"),), 0, True),)
    if len(source.axes) != 2:
        context.fail(f"with `skip` its input should be tokens (batch, positions), not {list(source.shape)}", "from")
    return (Value(tuple(Fixed(axis.size, "positions") for axis in source.axes), 1, True),)


def _positions(call: Call) -> Any:
    tokens, start, skip = call.inputs[0], call.attrs["start"], call.attrs["skip"]
    if skip is None:
        return call.torch.arange(start, start + tokens.shape[1], device=tokens.device)
    counted = tokens != skip
    return call.torch.where(counted, counted.cumsum(1) + (start - 1), skip)


_FREQUENCIES = Attr(None, (list, tuple))

OPS = (
    Op(
        name="rotary",
        rule=_rotary_rule,
        run=_rotary,
        attrs={
            "theta": Attr(10000.0, NUMBER),
            "rotated": Attr(None, INT),
            "interleaved": Attr(False, BOOL),
            "stretch": Attr(1.0, NUMBER),
            "amplitude": Attr(1.0, NUMBER),
            "frequencies": _FREQUENCIES,
            "long_frequencies": _FREQUENCIES,
            "longer_than": Attr(None, INT),
        },
        fresh="mean",
        multiples="any",
        doc="Rotary positions over (..., positions, size): pairs of the last axis turned, which freezes these.",
    ),
    Op(
        name="positions",
        rule=_positions_rule,
        run=_positions,
        attrs={"start": Attr(0, INT), "skip": Attr(None, INT)},
        doc="The index of each position of (batch, positions, ...), for an `embedding` to look up.",
    ),
)
