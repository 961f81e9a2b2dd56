"""All operations, by name. A new one is an entry in one of these files, or a file more in `_FILES`."""

from __future__ import annotations

from netgrow_cli.topology.ops import (
    attention,
    conv,
    cutting,
    derived_weights,
    elementwise,
    experts,
    linear,
    norm,
    pool,
    recurrent,
    reduce,
    rotary,
    shape,
    tensor,
)
from netgrow_cli.topology.ops.base import Attr, Call, Op, Param

_FILES = (
    linear, conv, derived_weights, norm, elementwise, pool, shape, cutting, reduce, attention, rotary, recurrent,
    tensor, experts,
)  # fmt: skip
OPS: dict[str, Op] = {op.name: op for file in _FILES for op in file.OPS}

# Other names that people use for the same operation.
ALIASES = {
    "avgpool1d": "avg_pool1d",
    "avgpool2d": "avg_pool2d",
    "avgpool3d": "avg_pool3d",
    "batch_norm1d": "batch_norm",
    "batch_norm2d": "batch_norm",
    "batch_norm3d": "batch_norm",
    "batchnorm": "batch_norm",
    "batchnorm1d": "batch_norm",
    "batchnorm2d": "batch_norm",
    "batchnorm3d": "batch_norm",
    "concat": "cat",
    "concatenate": "cat",
    "convtranspose1d": "conv_transpose1d",
    "convtranspose2d": "conv_transpose2d",
    "convtranspose3d": "conv_transpose3d",
    "groupnorm": "group_norm",
    "interpolate": "upsample",
    "layernorm": "layer_norm",
    "leakyrelu": "leaky_relu",
    "maxpool1d": "max_pool1d",
    "maxpool2d": "max_pool2d",
    "maxpool3d": "max_pool3d",
    "narrow": "slice",
    "rmsnorm": "rms_norm",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "swish": "silu",
    "view": "reshape",
}

# Other names for a setting, tried where an operation does not have the one that was given.
ATTR_ALIASES = {
    "dim": ("axis", "axes"),
    "dims": ("axes",),
    "axis": ("axes",),
    "num_groups": ("groups",),
    "start_dim": ("start",),
    "end_dim": ("end",),
    "end": ("stop",),
    "kernel": ("kernel_size",),
    "size": ("output_size", "sizes"),
    "split_size": ("sizes",),
    "split_sizes": ("sizes",),
    "order": ("axes",),
    "keep_dim": ("keepdim",),
    "scalar": ("by",),
    "other": ("by",),
    "slope": ("negative_slope",),
}


def canonical(name: str) -> str:
    """The name under which an operation is registered: `Conv2d` is conv2d."""
    lower = name.lower()
    if lower in OPS:
        return lower
    plain = lower.replace("_", "")
    return ALIASES.get(lower) or ALIASES.get(plain) or next((op for op in OPS if op.replace("_", "") == plain), name)


def close_names(name: str) -> list[str]:
    """Operations with a name like this one."""
    import difflib

    return difflib.get_close_matches(name.lower(), OPS, n=3, cutoff=0.5)


__all__ = ["ALIASES", "ATTR_ALIASES", "OPS", "Attr", "Call", "Op", "Param", "canonical", "close_names"]
