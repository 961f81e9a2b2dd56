"""The layers that mix all units of one axis, and the embedding table."""

from __future__ import annotations

from typing import Any

from netgrow_cli.topology.ops.base import Call, Op, Param
from netgrow_cli.topology.rule import notation


def _linear(call: Call) -> Any:
    return call.functional.linear(call.inputs[0], call.params["weight"], call.params.get("bias"))


def _linear_io(call: Call) -> Any:
    product = call.torch.matmul(call.inputs[0], call.params["weight"])
    return product if "bias" not in call.params else product + call.params["bias"]


def _embedding(call: Call) -> Any:
    return call.functional.embedding(call.inputs[0], call.params["weight"])


OPS = (
    Op(
        name="linear",
        rule=notation("... i, o i, o? -> ... o", ("weight", "bias")),
        run=_linear,
        params=(Param("weight"), Param("bias", "zero", optional=True)),
        consumes_axis=-1,
        doc="y = x W^T + b over the last axis.",
    ),
    Op(
        name="linear_io",
        rule=notation("... i, i o, o? -> ... o", ("weight", "bias")),
        run=_linear_io,
        params=(Param("weight"), Param("bias", "zero", optional=True)),
        consumes_axis=-1,
        doc="y = x W + b over the last axis: the weight as (in, out), as GPT-2 has it.",
    ),
    Op(
        name="embedding",
        rule=notation("..., v e -> ... e", ("weight",), data="rows of a table, chosen by the input"),
        run=_embedding,
        params=(Param("weight"),),
        doc="Rows of a table, chosen by integers.",
    ),
)
