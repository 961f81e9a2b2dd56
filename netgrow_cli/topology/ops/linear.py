"""The layers that mix all units of one axis, and the embedding table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from netgrow_cli.topology.ops import bounds
from netgrow_cli.topology.ops.base import Call, Op, Param
from netgrow_cli.topology.rows import Rows
from netgrow_cli.topology.rule import notation

_COLUMNS = 8
"""OpenBLAS multiplies so many columns at a time."""

_SMALL = 10**6
"""Up to so many multiplications it does so in place, without copying the operands first."""

_FEW = 12
"""Fewer rows than these are better multiplied with others, copied or not."""


def apply_linear(call: Call) -> Any:
    """y = x W^T + b."""
    return call.functional.linear(call.inputs[0], call.params["weight"], call.params.get("bias"))


def _linear_by_rows(call: Call, weight: Rows) -> Any:
    """Each row of the weight makes one unit."""
    x = call.inputs[0]
    read = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).t().contiguous()
    made = x.new_empty(weight.shape[0], read.shape[1])
    for start, block in weight.blocks(call.dtype):
        call.torch.mm(block, read, out=made[start : start + len(block)])
    return _plus_bias(call, made.t().reshape(*x.shape[:-1], weight.shape[0]))


def _linear_in_numpy(call: Call) -> Any:
    weight = call.params["weight"]
    return _times_in_numpy(call, len(weight), [(0, weight)])


def _linear_by_rows_in_numpy(call: Call, weight: Rows) -> Any:
    return _times_in_numpy(call, weight.shape[0], weight.blocks(call.dtype))


def _times_in_numpy(call: Call, units: int, blocks: Iterable[tuple[int, Any]]) -> Any:
    x = call.inputs[0]
    count = math.prod(x.shape[:-1])
    # (A matrix product with 15 columns takes half as long again as one with 16.)
    read = call.np.zeros((x.shape[-1], -(-count // _COLUMNS) * _COLUMNS), x.dtype)
    read[:, :count] = x.reshape(count, x.shape[-1]).T
    made = call.np.empty((units, read.shape[1]), x.dtype)
    small = _SMALL // max(1, read.size)
    for start, block in blocks:
        step = small if small >= _FEW else len(block)
        for first in range(0, len(block), max(1, step)):
            rows = block[first : first + step]
            call.np.matmul(rows, read, out=made[start + first : start + first + len(rows)])
    return _plus_bias(call, made[:, :count].T.reshape(*x.shape[:-1], units))


def _plus_bias(call: Call, product: Any) -> Any:
    return product + call.params["bias"] if "bias" in call.params else product


def _linear_io(call: Call) -> Any:
    return _plus_bias(call, call.inputs[0] @ call.params["weight"])


def _linear_io_by_rows(call: Call, weight: Rows) -> Any:
    """Each row of the weight is what one unit adds."""
    x = call.inputs[0]
    shape = (*x.shape[:-1], weight.shape[1])
    out = x.new_zeros(shape) if call.torch is not None else call.np.zeros(shape, x.dtype)
    for start, block in weight.blocks(call.dtype):
        out += x[..., start : start + len(block)] @ block
    return _plus_bias(call, out)


def _embedding(call: Call) -> Any:
    return call.functional.embedding(call.inputs[0], call.params["weight"])


def _embedding_in_numpy(call: Call) -> Any:
    return call.params["weight"][call.inputs[0]]


def _embedding_by_rows(call: Call, weight: Rows) -> Any:
    return weight.at(call.inputs[0], call.dtype)


OPS = (
    Op(
        name="linear",
        rule=notation("... i, o i, o? -> ... o", ("weight", "bias")),
        run=apply_linear,
        by_rows=_linear_by_rows,
        numpy=_linear_in_numpy,
        numpy_by_rows=_linear_by_rows_in_numpy,
        bounds=bounds.weighted(made=0),
        params=(Param("weight"), Param("bias", "zero", optional=True)),
        consumes_axis=-1,
        multiples="any",
        doc="y = x W^T + b over the last axis.",
    ),
    Op(
        name="linear_io",
        rule=notation("... i, i o, o? -> ... o", ("weight", "bias")),
        run=_linear_io,
        by_rows=_linear_io_by_rows,
        numpy=_linear_io,
        numpy_by_rows=_linear_io_by_rows,
        bounds=bounds.weighted(made=1),
        params=(Param("weight"), Param("bias", "zero", optional=True)),
        consumes_axis=-1,
        multiples="any",
        doc="y = x W + b over the last axis: the weight as (in, out), as GPT-2 has it.",
    ),
    Op(
        name="embedding",
        rule=notation("..., v e -> ... e", ("weight",), data="rows of a table, chosen by the input"),
        run=_embedding,
        by_rows=_embedding_by_rows,
        numpy=_embedding_in_numpy,
        numpy_by_rows=_embedding_by_rows,
        bounds=bounds.table,
        params=(Param("weight"),),
        multiples="any",
        doc="Rows of a table, chosen by integers.",
    ),
)
