"""The layers that mix all units of one axis, and the embedding table."""

from __future__ import annotations

from typing import Any

from netgrow_cli.topology.ops.base import Call, Op, Param
from netgrow_cli.topology.rows import Rows
from netgrow_cli.topology.rule import notation


def _linear(call: Call) -> Any:
    return call.functional.linear(call.inputs[0], call.params["weight"], call.params.get("bias"))


def _linear_by_rows(call: Call, weight: Rows) -> Any:
    """Each row of the weight makes one unit."""
    x = call.inputs[0]
    read = x.reshape(-1, x.shape[-1]).t().contiguous()
    made = x.new_empty(weight.shape[0], read.shape[1])
    for start, block in weight.blocks(call.dtype):
        call.torch.mm(block, read, out=made[start : start + len(block)])
    out = made.t().reshape(*x.shape[:-1], -1)
    return out + call.params["bias"] if "bias" in call.params else out


def _linear_io(call: Call) -> Any:
    product = call.torch.matmul(call.inputs[0], call.params["weight"])
    return product if "bias" not in call.params else product + call.params["bias"]


def _linear_io_by_rows(call: Call, weight: Rows) -> Any:
    """Each row of the weight is what one unit adds."""
    x = call.inputs[0]
    out = x.new_zeros(*x.shape[:-1], weight.shape[1])
    for start, block in weight.blocks(call.dtype):
        out += call.torch.matmul(x[..., start : start + len(block)], block)
    return out + call.params["bias"] if "bias" in call.params else out


def _embedding(call: Call) -> Any:
    return call.functional.embedding(call.inputs[0], call.params["weight"])


def _embedding_by_rows(call: Call, weight: Rows) -> Any:
    return weight.at(call.inputs[0], call.dtype)


OPS = (
    Op(
        name="linear",
        rule=notation("... i, o i, o? -> ... o", ("weight", "bias")),
        run=_linear,
        by_rows=_linear_by_rows,
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
        params=(Param("weight"),),
        multiples="any",
        doc="Rows of a table, chosen by integers.",
    ),
)
