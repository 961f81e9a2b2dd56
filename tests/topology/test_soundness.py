"""The layouts that the rules infer are true: networks around every operation, and the traps that are known.

See `networks.check` for what is tested of each. `free` is what may change, by size: it keeps the rules from
becoming sound by freezing everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from netgrow_cli.surgery.select import keeping_ties
from netgrow_cli.topology.layout import leaves
from netgrow_cli.topology.ops import OPS, canonical

from .networks import Layer, Network, batch_norm, check, conv, gain, layer, linear, network, transposed

VECTOR = {"x": ["batch", 4]}
SEQUENCE = {"x": ["batch", "time", 4]}
IMAGE = {"x": ["batch", 2, 8, 8]}
LINE = {"x": ["batch", 2, 16]}
VOLUME = {"x": ["batch", 2, 6, 6, 6]}

NETWORKS: dict[str, tuple[dict[str, Layer], dict[str, Any], list[str], list[int], dict[str, Any]]] = {}


def add(
    name: str, layers: dict[str, Layer], free: list[int], inputs: Any = None, outputs: Any = None, **more: Any
) -> None:
    assert name not in NETWORKS
    NETWORKS[name] = (layers, inputs or VECTOR, outputs or ["out"], free, more)


def normed(plain: Layer, dim: int = 0) -> Layer:
    """A layer with its weight computed by weight_norm."""
    tensors = plain["tensors"]
    magnitude = [size if axis == dim else 1 for axis, size in enumerate(tensors["weight"])]
    stated = {"dim": dim} if dim else {}
    return {**plain, "op": f"weight_norm_{plain['op']}", "tensors": {**tensors, "magnitude": magnitude}, **stated}


def standardized(plain: Layer, gained: bool = False) -> Layer:
    """A convolution with standardised weights."""
    tensors, weight = plain["tensors"], plain["tensors"]["weight"]
    gain = {"gain": [weight[0], *[1] * (len(weight) - 1)]} if gained else {}
    return {**plain, "op": f"standardized_{plain['op']}", "tensors": {**tensors, **gain}}


# -- an operation between two layers ---------------------------------------------------------------------

DOMAIN = ("sqrt", "asin", "log1p", "log", "log2", "log10", "reciprocal", "rsqrt", "pow")
ELEMENTWISE = [
    name
    for name, op in OPS.items()
    if op.rule is OPS["relu"].rule and not any(attr.default is ... for attr in op.attrs.values())
]

for _name in ELEMENTWISE:
    _before = "act" if _name in DOMAIN else "fc"
    add(
        f"{_name} between linears",
        {
            "fc": linear("x", 4, 6),
            "act": layer("sigmoid", "fc"),
            "op": layer(_name, _before, **({"min": -0.5} if _name == "clamp" else {})),
            "out": linear("op", 6, 2),
        },
        [6],
    )

for _name in ("add", "sub", "mul", "div", "maximum", "minimum"):
    add(
        f"{_name} of two layers",
        {
            "a": linear("x", 4, 6),
            "b": linear("x", 4, 6),
            "op": layer(_name, ["a", "b"]),
            "out": linear("op", 6, 2),
        },
        [6],
    )
    add(
        f"{_name} with a number",
        {"a": linear("x", 4, 6), "op": layer(_name, "a", by=2), "out": linear("op", 6, 2)},
        [6],
    )

for _units, _name in ((6, "per unit"), (1, "for all")):
    add(
        f"prelu {_name}",
        {"fc": linear("x", 4, 6), "op": layer("prelu", "fc", {"weight": (_units,)}), "out": linear("op", 6, 2)},
        [6],
    )
add(
    "prelu of an image",
    {"a": conv("x", 2, 6), "op": layer("prelu", "a", {"weight": (6,)}), "out": conv("op", 6, 2)},
    [6],
    IMAGE,
)
add(
    "weight_norm_linear",
    {"a": normed(linear("x", 4, 6)), "op": normed(linear("a", 6, 5)), "out": linear("op", 5, 2)},
    [5, 6],
    SEQUENCE,
)
add(
    "scale",
    {"a": linear("x", 4, 6), "op": layer("scale", "a", {"weight": (6,)}), "out": linear("op", 6, 2)},
    [6],
    SEQUENCE,
)
add(
    "scale of an image",
    {"a": conv("x", 2, 6), "op": layer("scale", "a", {"weight": (6,)}), "out": conv("op", 6, 2)},
    [6],
    IMAGE,
)
add(
    "embedding",
    {"op": layer("embedding", "x", {"weight": (9, 6)}), "out": linear("op", 6, 2)},
    [6],
    {"x": {"shape": ["batch", "time"], "dtype": "int64", "high": 9}},
)

# -- convolutions ------------------------------------------------------------------------------------------

for _dims, _inputs in ((1, LINE), (2, IMAGE), (3, VOLUME)):
    _kernel = (3,) * _dims
    add(f"conv{_dims}d", {"a": conv("x", 2, 6, _kernel), "out": conv("a", 6, 3, _kernel, padding=1)}, [6], _inputs)
    add(
        f"weight_norm_conv{_dims}d",
        {"a": normed(conv("x", 2, 6, _kernel)), "out": normed(conv("a", 6, 3, _kernel, padding=1))},
        [6],
        _inputs,
    )
    add(
        f"weight_norm_conv{_dims}d, copied",
        {"a": normed(conv("x", 2, 6, _kernel)), "out": conv("a", 6, 3, _kernel, padding=1)},
        [6],
        _inputs,
    )
    add(
        f"weight_norm_conv{_dims}d along an axis of its kernel",
        {
            "a": conv("x", 2, 6, _kernel),
            "op": normed(conv("a", 6, 4, _kernel, groups=2), 2),
            "out": conv("op", 4, 3, _kernel, padding=1),
        },
        [2, 2, 3],
        _inputs,
    )
    add(
        f"weight_norm_conv_transpose{_dims}d",
        {
            "a": conv("x", 2, 6, _kernel),
            "op": normed(transposed("a", 6, 4, _kernel, stride=2)),
            "out": conv("op", 4, 3, _kernel, padding=1),
        },
        [4, 6],
        _inputs,
    )
    add(
        f"standardized_conv{_dims}d",
        {
            "a": standardized(conv("x", 2, 6, _kernel)),
            "op": standardized(conv("a", 6, 5, _kernel), gained=True),
            "out": conv("op", 5, 3, _kernel, padding=1),
        },
        [5, 6],
        _inputs,
    )
    add(
        f"conv_transpose{_dims}d",
        {
            "a": conv("x", 2, 6, _kernel),
            "op": transposed("a", 6, 4, _kernel, stride=2),
            "out": conv("op", 4, 3, _kernel),
        },
        [4, 6],
        _inputs,
    )
    add(
        f"grouped conv_transpose{_dims}d",
        {
            "a": conv("x", 2, 6, _kernel),
            "op": transposed("a", 6, 4, _kernel, groups=2),
            "out": conv("op", 4, 3, _kernel),
        },
        [2, 2, 3],
        _inputs,
    )
    add(
        f"depthwise conv{_dims}d",
        {
            "a": conv("x", 2, 6, _kernel),
            "op": conv("a", 6, 6, _kernel, groups=6, padding=1),
            "bn": batch_norm("op", 6),
            "out": conv("bn", 6, 3, _kernel),
        },
        [6],
        _inputs,
    )
    for _name in ("max", "avg", "adaptive_max", "adaptive_avg"):
        _attrs = {"output_size": 2} if "adaptive" in _name else {"kernel_size": 2}
        add(
            f"{_name}_pool{_dims}d",
            {
                "a": conv("x", 2, 6, _kernel),
                "op": layer(f"{_name}_pool{_dims}d", "a", **_attrs),
                "flat": layer("flatten", "op"),
                "out": linear("flat", 6 * {1: 7, 2: 9, 3: 8}[_dims] if "adaptive" not in _name else 6 * 2**_dims, 2),
            },
            [6],
            _inputs,
        )

add(
    "conv with a mode",
    {"a": conv("x", 2, 6), "out": conv("a", 6, 3, padding="same", padding_mode="reflect")},
    [6],
    IMAGE,
)
add("grouped conv", {"a": conv("x", 2, 6), "op": conv("a", 6, 4, groups=2), "out": conv("op", 4, 3)}, [2, 2, 3], IMAGE)
add(
    "grouped conv after grouped conv",
    {
        "a": conv("x", 2, 8),
        "b": conv("a", 8, 8, groups=2),
        "op": conv("b", 8, 8, groups=4),
        "out": conv("op", 8, 3, (1, 1)),
    },
    [2, 2, 2, 2, 4],
    IMAGE,
)
add(
    "grouped conv over an unaligned concatenation",
    {
        "a": conv("x", 2, 3),
        "b": conv("x", 2, 5),
        "both": layer("cat", ["a", "b"]),
        "op": conv("both", 8, 6, groups=2),
        "out": conv("op", 6, 3),
    },
    [3],
    IMAGE,
)
add(
    "grouped conv over an aligned concatenation",
    {
        "a": conv("x", 2, 4),
        "b": conv("x", 2, 4),
        "both": layer("cat", ["a", "b"]),
        "op": conv("both", 8, 6, groups=2),
        "out": conv("op", 6, 3),
    },
    [3, 4],
    IMAGE,
)
add(
    "depthwise with two filters",
    {"a": conv("x", 2, 3), "op": conv("a", 3, 6, groups=3), "out": conv("op", 6, 3)},
    [2, 3],
    IMAGE,
)
add(
    "convolution over the units of a linear",
    {
        "a": linear("x", 4, 8),
        "one": layer("unsqueeze", "a", axis=1),
        "op": conv("one", 1, 5, (3,)),
        "flat": layer("flatten", "op"),
        "out": linear("flat", 30, 2),
    },
    [5],
)
add(
    "patches of an image as tokens",
    {
        "patch": conv("x", 2, 6, (4, 4), stride=4),
        "flat": layer("flatten", "patch", start=2),
        "tokens": layer("transpose", "flat", axes=[1, 2]),
        "norm": gain("layer_norm", "tokens", 6),
        "out": linear("norm", 6, 3),
    },
    [6],
    IMAGE,
)

# -- norms -------------------------------------------------------------------------------------------------

add("batch_norm", {"a": linear("x", 4, 6), "op": batch_norm("a", 6), "out": linear("op", 6, 2)}, [6])
add("batch_norm of an image", {"a": conv("x", 2, 6), "op": batch_norm("a", 6), "out": conv("op", 6, 2)}, [6], IMAGE)
add("instance_norm", {"a": conv("x", 2, 6), "op": gain("instance_norm", "a", 6), "out": conv("op", 6, 2)}, [6], IMAGE)
add("layer_norm", {"a": linear("x", 4, 6), "op": gain("layer_norm", "a", 6), "out": linear("op", 6, 2)}, [6], SEQUENCE)
add(
    "layer_norm of channels and positions",
    {"a": conv("x", 2, 6, (5, 5)), "op": gain("layer_norm", "a", 6, 4, 4), "out": conv("op", 6, 2)},
    [6],
    IMAGE,
)
add(
    "rms_norm",
    {"a": linear("x", 4, 6), "op": gain("rms_norm", "a", 6, bias=False, offset=1), "out": linear("op", 6, 2)},
    [6],
    SEQUENCE,
)
for _groups, _free in ((1, [6]), (2, [2, 3]), (3, [2, 3]), (6, [6])):
    add(
        f"group_norm {_groups}",
        {"a": conv("x", 2, 6), "op": gain("group_norm", "a", 6, groups=_groups), "out": conv("op", 6, 2)},
        _free,
        IMAGE,
    )
add(
    "group_norm over an unaligned concatenation",
    {
        "a": conv("x", 2, 3),
        "b": conv("x", 2, 5),
        "both": layer("cat", ["a", "b"]),
        "op": gain("group_norm", "both", 8, groups=4),
        "out": conv("op", 8, 3),
    },
    [],
    IMAGE,
)
for _name in ("softmax", "log_softmax", "softmin", "gumbel_softmax", "normalize"):
    add(
        f"{_name} over the units",
        {"a": linear("x", 4, 6), "op": layer(_name, "a", axis=1), "out": linear("op", 6, 2)},
        [6],
    )
    add(
        f"{_name} over positions",
        {"a": linear("x", 4, 6), "op": layer(_name, "a", axis=1), "out": linear("op", 6, 2)},
        [6],
        SEQUENCE,
    )
add(
    "local_response_norm",
    {"a": conv("x", 2, 6), "op": layer("local_response_norm", "a", size=3), "out": conv("op", 6, 2)},
    [],
    IMAGE,
)
for _name, _more in (("instance_norm", {}), ("group_norm", {"groups": 1})):
    add(
        f"{_name} whose positions are units",
        {"a": linear("x", 4, 6), "op": layer(_name, "a", **_more), "out": linear("op", 6, 2)},
        [6],
        {"x": ["batch", 3, 4]},
    )

# -- positions -----------------------------------------------------------------------------------------------

add("upsample", {"a": conv("x", 2, 6), "op": layer("upsample", "a"), "out": conv("op", 6, 2)}, [6], IMAGE)
add("pad", {"a": conv("x", 2, 6), "op": layer("pad", "a", padding=[1, 2]), "out": conv("op", 6, 2)}, [6], IMAGE)
for _name, _size, _attrs in (
    ("max_pool1d", 3, {"kernel_size": 2}),
    ("avg_pool1d", 6, {"kernel_size": 3, "stride": 1, "padding": 1}),
    ("adaptive_avg_pool1d", 4, {"output_size": 4}),
    ("adaptive_max_pool1d", 2, {"output_size": 2}),
    ("upsample", 12, {}),
):
    add(
        f"{_name} over units",
        {"a": linear("x", 4, 6), "op": layer(_name, "a", **_attrs), "out": linear("op", _size, 2)},
        [],
        {"x": ["batch", 3, 4]},
    )
add(
    "pad over units",
    {
        "a": linear("x", 4, 6),
        "wide": layer("unsqueeze", "a", axis=2),
        "b": linear("wide", 1, 5),
        "turned": layer("transpose", "b", axes=[1, 2]),
        "op": layer("pad", "turned", padding=[1, 0]),
        "back": layer("transpose", "op", axes=[1, 2]),
        "c": linear("back", 5, 3),
        "out": layer("mean", "c", axes=1),
    },
    [5],
)

# -- axes ------------------------------------------------------------------------------------------------------

add("flatten", {"a": conv("x", 2, 5), "op": layer("flatten", "a"), "out": linear("op", 180, 2)}, [5], IMAGE)
add(
    "channels-last flatten",
    {
        "a": conv("x", 2, 5),
        "turned": layer("permute", "a", axes=[0, 2, 3, 1]),
        "op": layer("flatten", "turned"),
        "out": linear("op", 180, 2),
    },
    [5],
    IMAGE,
)
add(
    "sum of two ways to flatten",
    {
        "a": conv("x", 2, 4, (5, 5)),
        "turned": layer("permute", "a", axes=[0, 2, 3, 1]),
        "one": layer("flatten", "a"),
        "other": layer("flatten", "turned"),
        "both": layer("add", ["one", "other"]),
        "out": linear("both", 64, 2),
    },
    [],
    IMAGE,
)
add(
    "channel shuffle",
    {
        "a": conv("x", 2, 12),
        "grid": layer("reshape", "a", shape=[0, 3, 4, 6, 6]),
        "turned": layer("transpose", "grid", axes=[1, 2]),
        "flat": layer("reshape", "turned", shape=[0, 12, 6, 6]),
        "op": conv("flat", 12, 8, groups=4),
        "out": conv("op", 8, 2),
    },
    [2, 3, 4],
    IMAGE,
)
add(
    "channel shuffle added to what it shuffles",
    {
        "a": conv("x", 2, 8),
        "grid": layer("reshape", "a", shape=[0, 2, 4, 6, 6]),
        "turned": layer("transpose", "grid", axes=[1, 2]),
        "flat": layer("reshape", "turned", shape=[0, -1, 6, 6]),
        "both": layer("add", ["a", "flat"]),
        "out": conv("both", 8, 2),
    },
    [2],
    IMAGE,
)
add(
    "a shuffle that does not fit what it is added to",
    {
        "a": conv("x", 2, 12),
        "grid": layer("reshape", "a", shape=[0, 3, 4, 6, 6]),
        "turned": layer("transpose", "grid", axes=[1, 2]),
        "flat": layer("reshape", "turned", shape=[0, 12, 6, 6]),
        "both": layer("add", ["a", "flat"]),
        "out": conv("both", 12, 2),
    },
    [],
    IMAGE,
)
add(
    "heads by name",
    {
        "q": linear("x", 4, 12),
        "grid": layer("reshape", "q", shape=[0, 0, "heads", "head_dim"]),
        "turned": layer("permute", "grid", axes=[0, 2, 1, 3]),
        "op": layer("softmax", "turned", axis=-1),
        "back": layer("permute", "op", axes=[0, 2, 1, 3]),
        "flat": layer("flatten", "back", start=2),
        "out": linear("flat", 12, 2),
    },
    [3, 4],
    SEQUENCE,
    dims={"heads": 3, "head_dim": 4},
)
add(
    "a single unit whose axis is dropped",
    {
        "a": linear("x", 4, 1),
        "op": layer("reshape", "a", shape=[-1]),
        "gate": layer("reshape", "op", shape=[-1, 1]),
        "b": linear("x", 4, 6),
        "both": layer("mul", ["b", "gate"]),
        "out": linear("both", 6, 2),
    },
    [6],
)
add(
    "squeeze",
    {"a": linear("x", 4, 1), "b": linear("a", 1, 6), "op": layer("squeeze", "a"), "out": linear("b", 6, 2)},
    [6],
    outputs=["out", "op"],
)
add(
    "unsqueeze", {"a": linear("x", 4, 6), "op": layer("unsqueeze", "a"), "out": linear("op", 1, 2)}, [], outputs=["out"]
)
add(
    "batch and time as one",
    {
        "a": linear("x", 4, 6),
        "op": layer("reshape", "a", shape=[-1, 6]),
        "bn": batch_norm("op", 6),
        "out": linear("bn", 6, 2),
    },
    [6],
    SEQUENCE,
)
add(
    "permute",
    {"a": linear("x", 4, 6), "op": layer("permute", "a", axes=[1, 0, 2]), "out": linear("op", 6, 2)},
    [6],
    SEQUENCE,
)
add(
    "reshape to itself",
    {"a": linear("x", 4, 6), "op": layer("reshape", "a", shape=[0, 6]), "out": linear("op", 6, 2)},
    [6],
)

# -- joining and cutting ---------------------------------------------------------------------------------------

add(
    "cat of two layers",
    {"a": linear("x", 4, 6), "b": linear("x", 4, 3), "op": layer("cat", ["a", "b"]), "out": linear("op", 9, 2)},
    [3, 6],
)
add(
    "cat of a layer with itself",
    {"a": linear("x", 4, 6), "op": layer("cat", ["a", "a"]), "out": linear("op", 12, 2)},
    [6],
)
add(
    "cat along the batch",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 6),
        "op": layer("cat", ["a", "b"], axis=0),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "cat along positions",
    {
        "a": conv("x", 2, 6),
        "b": conv("x", 2, 6, (3, 5)),
        "op": layer("cat", ["a", "b"], axis=3),
        "out": conv("op", 6, 2),
    },
    [6],
    IMAGE,
)
add(
    "ranges of a layer",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 3),
        "out": linear({"0:6": "a", "6:9": "b"}, 9, 2),
    },
    [3, 6],
)
add(
    "ranges of a convolution, one of them the input",
    {"a": conv("x", 2, 6, padding=1), "out": conv({"2:8": "a", "0:2": "x"}, 8, 2)},
    [6],
    IMAGE,
)
add(
    "sums of concatenations that meet elsewhere",
    {
        "a": linear("x", 4, 3),
        "b": linear("x", 4, 5),
        "c": linear("x", 4, 4),
        "d": linear("x", 4, 4),
        "ab": layer("cat", ["a", "b"]),
        "cd": layer("cat", ["c", "d"]),
        "op": layer("add", ["ab", "cd"]),
        "out": linear("op", 8, 2),
    },
    [1, 3, 4],
)
add(
    "sum of swapped concatenations",
    {
        "a": linear("x", 4, 3),
        "b": linear("x", 4, 6),
        "ab": layer("cat", ["a", "b"]),
        "ba": layer("cat", ["b", "a"]),
        "op": layer("add", ["ab", "ba"]),
        "out": linear("op", 9, 2),
    },
    [3],
)
add(
    "slices",
    {
        "a": linear("x", 4, 8),
        "one": linear("a[0:3]", 3, 2),
        "two": linear("a[3:]", 5, 2),
        "three": linear("a[3:6]", 3, 2),
    },
    [2, 3, 3],
    outputs=["one", "two", "three"],
)
add(
    "slice as a layer",
    {
        "a": linear("x", 4, 8),
        "op": layer("slice", "a", start=2, stop=7),
        "out": linear("op", 5, 2),
        "all": linear("a", 8, 2),
    },
    [1, 2, 5],
    outputs=["out", "all"],
)
add(
    "a slice that crosses a row",
    {
        "a": conv("x", 2, 5),
        "flat": layer("flatten", "a"),
        "op": layer("slice", "flat", start=10, stop=80),
        "out": linear("op", 70, 2),
    },
    [],
    IMAGE,
)
add(
    "a slice between rows",
    {
        "a": conv("x", 2, 5),
        "flat": layer("flatten", "a"),
        "op": layer("slice", "flat", start=36, stop=108),
        "out": linear("op", 72, 2),
    },
    [1, 2, 2],
    IMAGE,
)
add(
    "slice of positions",
    {"a": linear("x", 4, 6), "op": layer("slice", "a", axis=1, stop=2), "out": linear("op", 6, 2)},
    [6],
    SEQUENCE,
)
add(
    "split by sizes",
    {
        "a": linear("x", 4, 8),
        "op": layer("split", "a", sizes=[3, 5]),
        "one": linear("op[0]", 3, 2),
        "two": linear("op[1]", 5, 2),
    },
    [3, 5],
    outputs=["one", "two"],
)
add(
    "split by one size",
    {
        "a": linear("x", 4, 8),
        "op": layer("split", "a", sizes=3),
        "one": linear("op[0]", 3, 2),
        "two": linear("op[1]", 3, 2),
        "rest": linear("op[2]", 2, 2),
    },
    [2, 3, 3],
    outputs=["one", "two", "rest"],
)
add(
    "chunk",
    {
        "a": linear("x", 4, 8),
        "op": layer("chunk", "a", chunks=2),
        "one": linear("op[0]", 4, 2),
        "two": linear("op[1]", 4, 2),
    },
    [4, 4],
    outputs=["one", "two"],
)
add(
    "chunk of unlike halves",
    {
        "a": linear("x", 4, 3),
        "b": linear("x", 4, 5),
        "both": layer("cat", ["a", "b"]),
        "op": layer("chunk", "both", chunks=2),
        "one": linear("op[0]", 4, 2),
        "two": linear("op[1]", 4, 2),
    },
    [1, 3, 4],
    outputs=["one", "two"],
)
add(
    "chunk of which a part is an input",
    {
        "a": linear("x", 4, 4),
        "both": layer("cat", ["a", "x"]),
        "op": layer("chunk", "both", chunks=2),
        "one": linear("op[0]", 4, 2),
        "two": linear("op[1]", 4, 2),
    },
    [],
    outputs=["one", "two"],
)
add(
    "chunk of a flattened image",
    {
        "a": conv("x", 2, 4),
        "flat": layer("flatten", "a"),
        "op": layer("chunk", "flat", chunks=2),
        "one": linear("op[0]", 72, 2),
        "two": linear("op[1]", 72, 2),
    },
    [2, 2],
    IMAGE,
    ["one", "two"],
)
add(
    "halves that gate each other",
    {
        "a": linear("x", 4, 8),
        "act": layer("silu", "a[0:4]"),
        "op": layer("mul", ["act", "a[4:8]"]),
        "out": linear("op", 4, 2),
    },
    [4],
)
add(
    "overlapping slices that gate each other",
    {"a": linear("x", 4, 8), "op": layer("mul", ["a[0:6]", "a[2:8]"]), "out": linear("op", 6, 2)},
    [2],
)
add("glu", {"a": linear("x", 4, 8), "op": layer("glu", "a"), "out": linear("op", 4, 2)}, [4])
add(
    "glu of an uneven concatenation",
    {
        "a": linear("x", 4, 3),
        "b": linear("x", 4, 5),
        "both": layer("cat", ["a", "b"]),
        "op": layer("glu", "both"),
        "out": linear("op", 4, 2),
    },
    [1, 3],
)
add("glu of an image", {"a": conv("x", 2, 8), "op": layer("glu", "a", axis=1), "out": conv("op", 4, 2)}, [4], IMAGE)

for _name in ("mean", "sum", "amax", "amin"):
    add(
        f"{_name} over positions",
        {"a": conv("x", 2, 6), "op": layer(_name, "a"), "out": linear("op", 6, 2)},
        [6],
        IMAGE,
    )
    add(
        f"{_name} over units",
        {"a": linear("x", 4, 6), "op": layer(_name, "a", axes=-1, keepdim=True), "out": linear("op", 1, 2)},
        [6],
    )
    add(
        f"{_name} over everything but the batch",
        {
            "a": conv("x", 2, 6),
            "b": linear("x", 8, 5),
            "op": layer(_name, "a", axes=[1, 2, 3]),
            "out": layer(_name, "b"),
        },
        [5, 6],
        IMAGE,
        ["op"],
    )

# -- broadcasting ----------------------------------------------------------------------------------------------

add(
    "squeeze and excitation",
    {
        "a": conv("x", 2, 6),
        "pool": layer("adaptive_avg_pool2d", "a"),
        "down": conv("pool", 6, 3, (1, 1)),
        "act": layer("relu", "down"),
        "up": conv("act", 3, 6, (1, 1)),
        "gate": layer("sigmoid", "up"),
        "op": layer("mul", ["a", "gate"]),
        "out": conv("op", 6, 2),
    },
    [3, 6],
    IMAGE,
)
add(
    "one unit repeated along all",
    {
        "a": linear("x", 4, 6),
        "g": linear("x", 4, 1),
        "op": layer("mul", ["a", "g"]),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "a vector added to a sequence",
    {
        "a": linear("x", 4, 6),
        "v": linear("y", 4, 6),
        "one": layer("unsqueeze", "v", axis=1),
        "op": layer("add", ["one", "a"]),
        "out": linear("op", 6, 2),
    },
    [6],
    {"x": ["batch", "time", 4], "y": ["batch", 4]},
)
add(
    "units against the units of another axis",
    {
        "a": linear("x", 4, 3),
        "b": linear("x", 4, 5),
        "left": layer("unsqueeze", "a", axis=2),
        "right": layer("unsqueeze", "b", axis=1),
        "op": layer("mul", ["left", "right"]),
        "flat": layer("flatten", "op"),
        "out": linear("flat", 15, 2),
    },
    [3, 5],
)
add(
    "single units everywhere",
    {"a": linear("x", 4, 1), "b": linear("a", 1, 1), "act": layer("add", ["a", "b"]), "out": linear("act", 1, 2)},
    [1],
)

# -- parameters used twice ---------------------------------------------------------------------------------------

add(
    "two branches with the same parameters",
    {
        "f": linear("x", 4, 6),
        "g": {**layer("linear", "y"), "prefix": "f."},
        "op": layer("sub", ["f", "g"]),
        "out": linear("op", 6, 2),
    },
    [6],
    {"x": ["batch", 4], "y": ["batch", 4]},
)
add(
    "two branches with the same parameters, read apart",
    {
        "f": linear("x", 4, 6),
        "g": {**layer("linear", "y"), "prefix": "f."},
        "op": layer("cat", ["f", "g"]),
        "out": linear("op", 12, 2),
    },
    [6],
    {"x": ["batch", 4], "y": ["batch", 4]},
)
add(
    "a recurrence by hand",
    {
        "h0": linear("x", 4, 6),
        "r1": linear("h0", 6, 6),
        "h1": layer("add", ["h0", "r1"]),
        "r2": {**layer("linear", "h1"), "prefix": "r1."},
        "h2": layer("tanh", "r2"),
        "out": linear("h2", 6, 2),
    },
    [6],
)
add(
    "a square layer applied twice",
    {
        "h0": linear("x", 4, 6),
        "r1": linear("h0", 6, 6),
        "a1": layer("relu", "r1"),
        "r2": {**layer("linear", "a1"), "prefix": "r1."},
        "out": linear("r2", 6, 2),
    },
    [6],
)
add(
    "tied embedding",
    {
        "embed": layer("embedding", "x", {"weight": (9, 6)}),
        "fc": linear("embed", 6, 6),
        "sum": layer("add", ["embed", "fc"]),
        "out": linear("sum", 6, 9, bias=False),
    },
    [6],
    {"x": {"shape": ["batch", "time"], "dtype": "int64", "high": 9}},
    tied={"out.weight": "embed.weight"},
)
add(
    "tied autoencoder layers of equal shape",
    {
        "a": linear("x", 4, 6),
        "b": linear("a", 6, 6, bias=False),
        "c": linear("b", 6, 6, bias=False),
        "out": linear("c", 6, 2),
    },
    [6],
    tied={"c.weight": "b.weight"},
)

# -- longer ones ---------------------------------------------------------------------------------------------------

add(
    "residual blocks with a strided shortcut",
    {
        "stem": conv("x", 2, 4, padding=1),
        "c1": conv("stem", 4, 4, padding=1),
        "n1": batch_norm("c1", 4),
        "s1": layer("add", ["stem", "n1"]),
        "c2": conv("s1", 4, 6, stride=2, padding=1),
        "short": conv("s1", 4, 6, (1, 1), stride=2),
        "s2": layer("add", ["c2", "short"]),
        "pool": layer("adaptive_avg_pool2d", "s2"),
        "flat": layer("flatten", "pool"),
        "out": linear("flat", 6, 3),
    },
    [4, 6],
    IMAGE,
)
add(
    "dense blocks",
    {
        "a": conv("x", 2, 3, padding=1),
        "ab": layer("cat", ["x", "a"]),
        "b": conv("ab", 5, 3, padding=1),
        "abc": layer("cat", ["x", "a", "b"]),
        "n": batch_norm("abc", 8),
        "out": conv("n", 8, 2),
    },
    [3, 3],
    IMAGE,
)
add(
    "units of a mixer over positions",
    {
        "a": linear("x", 4, 6),
        "turned": layer("transpose", "a", axes=[1, 2]),
        "mix": linear("turned", 5, 7),
        "act": layer("gelu", "mix"),
        "back": linear("act", 7, 5),
        "again": layer("transpose", "back", axes=[1, 2]),
        "sum": layer("add", ["a", "again"]),
        "norm": gain("layer_norm", "sum", 6),
        "out": linear("norm", 6, 2),
    },
    [6, 7],
    {"x": ["batch", 5, 4]},
)
add(
    "gates of a cell by hand",
    {
        "g": linear("x", 4, 12),
        "c": layer("chunk", "g", chunks=3),
        "i": layer("sigmoid", "c[0]"),
        "n": layer("tanh", "c[1]"),
        "o": layer("sigmoid", "c[2]"),
        "in": layer("mul", ["i", "n"]),
        "h": layer("mul", ["in", "o"]),
        "out": linear("h", 4, 2),
    },
    [4],
)

# -- attention and other products of activations ----------------------------------------------------------------


def heads(name: str, source: str, count: Any = 4) -> dict[str, Layer]:
    """(batch, time, heads * size) as (batch, heads, time, size)."""
    return {
        f"{name}_grid": layer("reshape", source, shape=[0, 0, count, -1]),
        f"{name}h": layer("transpose", f"{name}_grid", axes=[1, 2]),
    }


def joined(source: str, makes: int = 2, reads: int = 12) -> dict[str, Layer]:
    return {
        "back": layer("transpose", source, axes=[1, 2]),
        "flat": layer("flatten", "back", start=2),
        "out": linear("flat", reads, makes),
    }


def projected(q: int = 8, k: int = 8, v: int = 12) -> dict[str, Layer]:
    return {"q": linear("x", 4, q), "k": linear("x", 4, k), "v": linear("x", 4, v)}


SPLIT = {**projected(), **heads("q", "q"), **heads("k", "k"), **heads("v", "v")}
add("attention", {**SPLIT, "op": layer("attention", ["qh", "kh", "vh"]), **joined("op")}, [2, 3, 4], SEQUENCE)
add(
    "attention with a mask for each head",
    {
        **SPLIT,
        "bias": layer("parameter", None, {"weight": (4, 5, 5)}),
        "op": layer("attention", ["qh", "kh", "vh", "bias"], scale=0.5),
        **joined("op"),
    },
    [2, 3, 4],
    {"x": ["batch", 5, 4]},
)
add(
    "attention with few heads of keys",
    {
        **projected(8, 4, 6),
        **heads("q", "q"),
        **heads("k", "k", 2),
        **heads("v", "v", 2),
        "op": layer("attention", ["qh", "kh", "vh"], is_causal=True),
        **joined("op"),
    },
    [2, 2, 2, 3],
    SEQUENCE,
)
add(
    "rotary attention in a window",
    {
        **SPLIT,
        "qr": layer("rotary", "qh"),
        "kr": layer("rotary", "kh"),
        "op": layer("attention", ["qr", "kr", "vh"], is_causal=True, window=3, softcap=2.0),
        **joined("op"),
    },
    [3, 4],
    SEQUENCE,
)
add(
    "rotary over a part",
    {
        **projected(16, 16),
        **heads("q", "q"),
        **heads("k", "k"),
        **heads("v", "v"),
        "qr": layer("rotary", "qh", rotated=2),
        "kr": layer("rotary", "kh", rotated=2),
        "op": layer("attention", ["qr", "kr", "vh"]),
        **joined("op"),
    },
    [2, 3, 4],
    SEQUENCE,
)
add(
    "rotary over a part that the next one cuts",
    {
        "fc": linear("x", 4, 12),
        "one": layer("rotary", "fc", rotated=4, interleaved=True),
        "two": layer("rotary", "one", rotated=8, theta=5.0),
        "out": linear("two", 12, 2),
    },
    [4],
    SEQUENCE,
)
add(
    "tokens at positions",
    {
        "embed": layer("embedding", "x", {"weight": (9, 6)}),
        "at": layer("positions", "x", start=1),
        "place": layer("embedding", "at", {"weight": (8, 6)}),
        "counted": layer("positions", "x", start=2, skip=1),
        "place2": layer("embedding", "counted", {"weight": (8, 6)}),
        "sum": layer("add", ["embed", "place", "place2"]),
        "op": layer("root_scale", "sum"),
        "out": linear("op", 6, 2),
    },
    [6],
    {"x": {"shape": ["batch", "time"], "dtype": "int64", "high": 9}},
)


def shared(name: str, size: int) -> dict[str, Layer]:
    """Two heads, each twice, as models write it out."""
    return {
        f"{name}_one": layer("unsqueeze", f"{name}h", axis=2),
        f"{name}_two": layer("expand", f"{name}_one", sizes=[-1, -1, 2, -1, -1]),
        f"{name}_all": layer("reshape", f"{name}_two", shape=[0, 4, 5, size]),
    }


add(
    "grouped-query attention written out",
    {
        **projected(8, 4, 6),
        **heads("q", "q"),
        **heads("k", "k", 2),
        **heads("v", "v", 2),
        **shared("k", 2),
        **shared("v", 3),
        "op": layer("attention", ["qh", "k_all", "v_all"]),
        **joined("op"),
    },
    [2, 2, 2, 3],
    {"x": ["batch", 5, 4]},
)
add(
    "attention of windows side by side",
    {
        "q": linear("x", 4, 12),
        "k": linear("x", 4, 12),
        "v": linear("x", 4, 18),
        "qs": layer("reshape", "q", shape=[0, 0, 3, 2, 2]),
        "ks": layer("reshape", "k", shape=[0, 0, 3, 2, 2]),
        "vs": layer("reshape", "v", shape=[0, 0, 3, 2, 3]),
        "qp": layer("permute", "qs", axes=[0, 2, 3, 1, 4]),
        "kp": layer("permute", "ks", axes=[0, 2, 3, 1, 4]),
        "vp": layer("permute", "vs", axes=[0, 2, 3, 1, 4]),
        "op": layer("attention", ["qp", "kp", "vp"]),
        "back": layer("permute", "op", axes=[0, 3, 1, 2, 4]),
        "flat": layer("flatten", "back", start=2),
        "out": linear("flat", 18, 2),
    },
    [2, 2, 3, 3],
    SEQUENCE,
)
add(
    "attention written out with matmul",
    {
        **SPLIT,
        "kt": layer("transpose", "kh", axes=[-2, -1]),
        "scores": layer("matmul", ["qh", "kt"], scaled=True),
        "soft": layer("softmax", "scores", axis=-1),
        "op": layer("matmul", ["soft", "vh"]),
        **joined("op"),
    },
    [2, 3, 4],
    {"x": ["batch", 5, 4]},
)
add(
    "attention written out with einsum",
    {
        **projected(),
        **{f"{n}_grid": layer("reshape", n, shape=[0, 0, 4, -1]) for n in "qkv"},
        "scores": layer("einsum", ["q_grid", "k_grid"], equation="bqhd,bkhd->bhqk"),
        "soft": layer("softmax", "scores", axis=-1),
        "op": layer("einsum", ["soft", "v_grid"], equation="bhqk,bkhe->bqhe"),
        "flat": layer("flatten", "op", start=2),
        "out": linear("flat", 12, 2),
    },
    [2, 3, 4],
    {"x": ["batch", 5, 4]},
)
add(
    "fused qkv taken apart",
    {
        "qkv": linear("x", 4, 24),
        "grid": layer("reshape", "qkv", shape=[0, 0, 3, 4, 2]),
        "turned": layer("permute", "grid", axes=[2, 0, 3, 1, 4]),
        "parts": layer("unbind", "turned"),
        "op": layer("attention", ["parts[0]", "parts[1]", "parts[2]"]),
        **joined("op", 2, 8),
    },
    [2, 4],
    SEQUENCE,
)
add(
    "product of a matrix with units on both sides",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 3),
        "at": layer("transpose", "a", axes=[1, 2]),
        "op": layer("matmul", ["at", "b"]),
        "flat": layer("flatten", "op"),
        "out": linear("flat", 18, 2),
    },
    [3, 6],
    {"x": ["batch", 5, 4]},
)
add(
    "einsum over a repeated letter",
    {
        "a": linear("x", 4, 9),
        "grid": layer("reshape", "a", shape=[0, 3, 3]),
        "op": layer("einsum", "grid", equation="bii->bi"),
        "out": linear("op", 3, 2),
    },
    [3],
)
add(
    "einsum that sums what the second operand alone has",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 3),
        "op": layer("einsum", ["a", "b"], equation="bi,bj->bi"),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "linear_io",
    {
        "a": layer("linear_io", "x", {"weight": (4, 6), "bias": (6,)}),
        "act": layer("gelu", "a"),
        "out": layer("linear_io", "act", {"weight": (6, 2)}),
    },
    [6],
    SEQUENCE,
)
add(
    "vector_norm over positions",
    {"a": conv("x", 2, 6), "op": layer("vector_norm", "a"), "out": linear("op", 6, 2)},
    [6],
    IMAGE,
)
add(
    "vector_norm over units",
    {
        "a": linear("x", 4, 6),
        "norm": layer("vector_norm", "a", axes=-1, keepdim=True),
        "op": layer("div", ["a", "norm"]),
        "out": linear("op", 6, 2),
    },
    [6],
)

# -- values that are no layers ----------------------------------------------------------------------------------

add(
    "class token and positions",
    {
        "patch": conv("x", 2, 6, (4, 4), stride=4),
        "flat": layer("flatten", "patch", start=2),
        "tokens": layer("transpose", "flat", axes=[1, 2]),
        "cls": layer("parameter", None, {"weight": (1, 1, 6)}),
        "op": layer("expand", "cls", sizes=["batch", -1, -1]),
        "all": layer("cat", ["op", "tokens"], axis=1),
        "pos": layer("parameter", None, {"weight": (1, 5, 6)}),
        "sum": layer("add", ["all", "pos"]),
        "norm": gain("layer_norm", "sum", 6),
        "first": layer("select", "norm", axis=1, index=0),
        "out": linear("first", 6, 3),
    },
    [6],
    IMAGE,
)
add(
    "layer scale",
    {
        "a": linear("x", 4, 6),
        "gamma": layer("parameter", None, {"weight": (6,)}),
        "op": layer("mul", ["a", "gamma"]),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "a parameter multiplied as a matrix",
    {
        "a": linear("x", 4, 6),
        "w": layer("parameter", None, {"weight": (6, 5)}),
        "op": layer("matmul", ["a", "w"]),
        "out": linear("op", 5, 2),
    },
    [5, 6],
)
add(
    "relative position table",
    {
        **SPLIT,
        "table": layer("parameter", None, {"weight": (9, 4)}),
        "index": layer("constant", None, value=[[4 + i - j for j in range(5)] for i in range(5)], dtype="int64"),
        "op": layer("lookup", ["table", "index"]),
        "bias": layer("permute", "op", axes=[2, 0, 1]),
        "one": layer("unsqueeze", "bias", axis=0),
        "mixed": layer("attention", ["qh", "kh", "vh", "one"]),
        **joined("mixed"),
    },
    [2, 3, 4],
    {"x": ["batch", 5, 4]},
)
add(
    "constant added to all units",
    {
        "a": linear("x", 4, 6),
        "c": layer("constant", None, value=0.5),
        "op": layer("add", ["a", "c"]),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "constant for each unit",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 3),
        "c": layer("constant", None, value=[1, 2, 3, 4, 5, 6]),
        "op": layer("mul", ["a", "c"]),
        "both": layer("cat", ["op", "b"]),
        "out": linear("both", 9, 2),
    },
    [3],
)
add(
    "one unit expanded to many",
    {
        "a": linear("x", 4, 1),
        "b": linear("x", 4, 6),
        "op": layer("expand", "a", sizes=[-1, 6]),
        "both": layer("mul", ["b", "op"]),
        "out": linear("both", 6, 2),
    },
    [6],
)
add(
    "one index of the units",
    {
        "a": linear("x", 4, 6),
        "b": linear("a", 6, 5),
        "op": layer("select", "a", axis=2, index=3),
        "wide": layer("unsqueeze", "op"),
        "gated": layer("mul", ["b", "wide"]),
        "out": linear("gated", 5, 2),
    },
    [5],
    SEQUENCE,
)
add(
    "stack of two layers",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 6),
        "op": layer("stack", ["a", "b"], axis=1),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "stack behind the units",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 6),
        "op": layer("stack", ["a", "b"], axis=-1),
        "flat": layer("flatten", "op"),
        "out": linear("flat", 12, 2),
    },
    [6],
)
add(
    "shifted windows and merged patches",
    {
        "a": linear("x", 4, 6),
        "rolled": layer("roll", "a", shifts=[-1, -2], axes=[1, 2]),
        "r0": layer("strided", "rolled", axis=1, step=2),
        "r1": layer("strided", "rolled", axis=1, start=1, step=2),
        "p0": layer("strided", "r0", axis=2, step=2),
        "p1": layer("strided", "r1", axis=2, step=2),
        "p2": layer("strided", "r0", axis=2, start=1, step=2),
        "p3": layer("strided", "r1", axis=2, start=1, step=2),
        "op": layer("cat", ["p0", "p1", "p2", "p3"], axis=-1),
        "norm": gain("layer_norm", "op", 24),
        "out": linear("norm", 24, 2, bias=False),
    },
    [6],
    {"x": ["batch", 4, 6, 4]},
)
add(
    "windows of an image",
    {
        "a": conv("x", 2, 5),
        "op": layer("unfold", "a", kernel_size=2, stride=2),
        "act": layer("relu", "op"),
        "back": layer("fold", "act", kernel_size=2, stride=2, output_size=[6, 6]),
        "out": layer("conv2d", "back", {"weight": (3, 5, 3, 3)}),
    },
    [5],
    {"x": ["batch", 2, 8, 8]},
)
add(
    "roll of the units",
    {"a": linear("x", 4, 6), "op": layer("roll", "a", shifts=1, axes=1), "out": linear("op", 6, 2)},
    [],
)
add(
    "every other unit",
    {"a": linear("x", 4, 6), "op": layer("strided", "a", axis=1, step=2), "out": linear("op", 3, 2)},
    [3],
)
add(
    "every fourth unit of six",
    {"a": linear("x", 4, 6), "op": layer("strided", "a", axis=1, step=4), "out": linear("op", 2, 2)},
    [],
)
add(
    "halves that stand interleaved",
    {
        "a": linear("x", 4, 12),
        "gate": layer("strided", "a", axis=1, step=2),
        "up": layer("strided", "a", axis=1, start=1, step=2),
        "act": layer("sigmoid", "gate"),
        "op": layer("mul", ["act", "up"]),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "a weight by an equation",
    {
        "a": layer("einsum_dense", "x", {"weight": (4, 2, 6)}, equation="bti,iho->bhto"),
        "act": layer("gelu", "a"),
        "out": layer("einsum_dense", "act", {"weight": (2, 6, 3)}, equation="bhti,hio->bto"),
    },
    [2, 6],
    SEQUENCE,
)
add(
    "experts that are chosen",
    {
        "a": linear("x", 4, 6),
        "router": linear("a", 6, 3),
        "top": layer("along", "router", call="aten.topk.default", args=["$0", 1], axis=-1, sizes=[1, 1]),
        "index": layer("reshape", "top[1]", shape=[0]),
        "up": layer("experts", ["a", "index"], {"weight": (3, 5, 6)}, equation="ti,t,eoi->to"),
        "act": layer("gelu", "up"),
        "op": layer("experts", ["act", "index"], {"weight": (3, 5, 6)}, equation="ti,t,eio->to"),
        "share": layer("sigmoid", "top[0]"),
        "mul": layer("mul", ["op", "share"]),
        "sum": layer("add", ["a", "mul"]),
        "out": linear("sum", 6, 2),
    },
    [5, 6],
)
add(
    "rows taken out and put back",
    {
        "a": linear("x", 4, 6),
        "index": layer("constant", None, value=[2, 0], dtype="int64"),
        "rows": layer("pick", ["a", "index"], axis=1),
        "b": linear("rows", 6, 6),
        "op": layer("put", ["a", "b", "index"], axis=1, accumulate=True),
        "out": linear("op", 6, 2),
    },
    [6],
    {"x": ["batch", 5, 4]},
)
add(
    "rows of units",
    {
        "a": linear("x", 4, 6),
        "turned": layer("permute", "a", axes=[2, 0, 1]),
        "index": layer("constant", None, value=[3, 1], dtype="int64"),
        "op": layer("lookup", ["turned", "index"]),
        "back": layer("permute", "op", axes=[1, 2, 0]),
        "out": linear("back", 2, 2),
    },
    [],
    SEQUENCE,
)
add(
    "pad in front of the units' axis by nothing",
    {
        "a": linear("x", 4, 6),
        "op": layer("pad", "a", padding=[0, 0, 1, 2]),
        "out": linear("op", 6, 2),
    },
    [6],
    {"x": ["batch", 5, 4]},
)

# -- torch's own operations -------------------------------------------------------------------------------------

add(
    "pointwise",
    {
        "a": linear("x", 4, 6),
        "op": layer("pointwise", "a", call="aten.sinc.default", args=["$0"]),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "pointwise of two layers",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 6),
        "op": layer("pointwise", ["a", "b"], call="aten.atan2.default", args=["$0", "$1"]),
        "out": linear("op", 6, 2),
    },
    [6],
)
add(
    "resample",
    {
        "a": conv("x", 2, 6),
        "op": layer(
            "resample", "a", call="aten.upsample_bilinear2d.default", args=["$0", [4, 9], False], positions=[4, 9]
        ),
        "out": conv("op", 6, 2),
    },
    [6],
    IMAGE,
)
add(
    "an operation without a rule freezes what it touches",
    {
        "a": linear("x", 4, 6),
        "b": linear("x", 4, 5),
        "op": layer("aten", "a", call="aten.cumsum.default", args=["$0", 1], shapes=[[3, 6]]),
        "c": linear("op[0]", 6, 5),
        "sum": layer("add", ["b", "c"]),
        "out": linear("sum", 5, 2),
    },
    [5],
    {"x": [3, 4]},
)
add(
    "units behind an operation without a rule",
    {
        "a": linear("x", 4, 6),
        "op": layer("aten", "a", call="aten.sort.default", args=["$0"], shapes=[[3, 6], [3, 6]]),
        "b": linear("x", 4, 6),
        "sum": layer("add", ["op[0]", "b"]),
        "out": linear("sum", 6, 2),
    },
    [],
    {"x": [3, 4]},
)


def recurrent(
    op: str, source: str, reads: int, hidden: int, levels: int = 1, ends: Sequence[str] = ("",), **attrs: Any
) -> Layer:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[op] * hidden
    tensors: dict[str, Sequence[int]] = {}
    for level in range(levels):
        for end in (f"l{level}{direction}" for direction in ends):
            shapes = (gates, reads if level == 0 else hidden * len(ends)), (gates, hidden), (gates,), (gates,)
            tensors |= {f"{kind}_{end}": shape for kind, shape in zip(_KINDS, shapes, strict=True)}
    return layer(op, source, tensors, **attrs)


_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
add(
    "recurrent layers on each other",
    {
        "fc": linear("x", 4, 6),
        "two": recurrent("lstm", "fc", 6, 5, 2, ("", "_reverse"), batch_first=True),
        "gru": recurrent("gru", "two", 10, 5, batch_first=True),
        "sum": layer("add", ["gru", "two[5:10]"]),
        "last": recurrent("rnn", "sum", 5, 3, nonlinearity="relu", batch_first=True),
        "state": layer("squeeze", "last[1]", axis=0),
        "out": linear("state", 3, 2),
    },
    [3, 5, 5, 5, 5, 6],
    {"x": ["batch", 5, 4]},
)


def made(name: str) -> Network:
    layers, inputs, outputs, _, more = NETWORKS[name]
    return network(layers, inputs, outputs, **more)


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    check(made(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_may_change(name: str) -> None:
    assert sorted(made(name).free().values()) == NETWORKS[name][3]


def test_every_operation_is_here() -> None:
    used = {canonical(body["op"]) for layers, *_ in NETWORKS.values() for body in layers.values()}
    assert set(OPS) - used == set()


EFFECTS = {
    "layer_norm": {"layer_norm"},
    "layer_norm of channels and positions": {"layer_norm over 3 axes"},
    "rms_norm": {"rms_norm"},
    "group_norm 1": {"group_norm"},
    "group_norm 6": set(),
    "instance_norm": set(),
    "instance_norm whose positions are units": {"instance_norm"},
    "group_norm whose positions are units": {"group_norm"},
    "softmax over the units": {"softmax"},
    "softmax over positions": set(),
    "normalize over the units": {"normalize"},
    "heads by name": {"softmax"},
    "mean over positions": set(),
    "mean over units": {"mean"},
    "sum over units": {"sum"},
    "amax over units": {"amax"},
    "amin over everything but the batch": {"amin"},
    "weight_norm_linear": {"weight_norm"},
    "weight_norm_conv1d": {"weight_norm"},
    "weight_norm_conv1d, copied": set(),
    "weight_norm_conv2d along an axis of its kernel": {"weight_norm", "weight_norm of what it makes"},
    "weight_norm_conv_transpose1d": {"weight_norm of what it makes"},
    "standardized_conv2d": {"standardized weights"},
    "batch_norm": set(),
    "squeeze and excitation": set(),
    "attention": {"attention"},
    "rotary over a part": {"attention"},
    "tokens at positions": {"root_scale"},
    "attention written out with matmul": {"contraction"},
    "attention written out with einsum": {"contraction"},
    "fused qkv taken apart": {"attention"},
    "vector_norm over positions": set(),
    "vector_norm over units": {"vector_norm"},
    "class token and positions": {"layer_norm"},
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_sees_a_whole_width_says_so(name: str) -> None:
    infos = made(name).topology.widths.values()
    assert {effect.kind for info in infos if info.frozen is None for effect in info.effects} == EFFECTS[name]


def test_reasons_say_what_freezes() -> None:
    def reason(name: str, tensor: str, axis: int = 0) -> str:
        topology = made(name).topology
        return " ".join(str(topology.widths[leaf.id].frozen) for leaf in leaves(topology.tensors[tensor][axis]))

    assert "mixes" in reason("convolution over the units of a linear", "a.weight")
    assert "neighbouring" in reason("local_response_norm", "a.weight")
    assert "straddle" in reason("group_norm over an unaligned concatenation", "a.weight")
    assert "multiples of 36" in reason("a slice that crosses a row", "a.weight")
    assert "no common grid" in reason("a shuffle that does not fit what it is added to", "a.weight")
    assert "equal parts, of which one may not change: input" in reason("chunk of which a part is an input", "a.weight")
    assert "repeated along another axis" in reason("one unit repeated along all", "g.weight")
    assert "drops the axis" in reason("a single unit whose axis is dropped", "a.weight")
    assert "squeezed away" in reason("squeeze", "a.weight")
    assert "positions" in reason("max_pool1d over units", "a.weight")


def test_sizes_that_code_ties() -> None:
    for name, sizes in (("chunk", [4, 4]), ("split by one size", [3, 3]), ("split by sizes", None)):
        ties = made(name).topology.ties
        assert [[piece.size for piece in tie.pieces] for tie in ties] == ([sizes] if sizes else [])


def test_what_follows_so_that_tied_sizes_stay_equal() -> None:
    """a (3) and 1 of b are one half, the other 4 of b the other."""
    topology = made("chunk of unlike halves").topology
    ids = {info.name: info.width.id for info in topology.widths.values()}
    a, first, second = ids["a"], ids["b[0:1]"], ids["b[1:5]"]
    assert keeping_ties(topology, {second: 2}) == {second: 2, a: 2}
    assert keeping_ties(topology, {first: 1, second: 1}) == {first: 1, second: 1}
    assert keeping_ties(topology, {a: 2}, sign=-1) == {a: 2, second: 2}
    assert keeping_ties(topology, {second: 1}, sign=-1) == {second: 1, a: 1}  # (the only unit of `first` stays)
