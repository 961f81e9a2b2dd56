"""Run a graph on real tensors, operation by operation; values are dropped after their last reader."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.library import NeedsTorch, in_numpy, torch_at_full_precision
from netgrow_cli.topology.ops import OPS, Call
from netgrow_cli.topology.rows import Rows
from netgrow_cli.topology.solve import Topology

Read = Callable[[str], Any]
ByRows = Callable[[str], Rows | None]
Observe = Callable[[Node, Sequence[Any], Sequence[Any]], None]


def run(
    topology: Topology,
    read: Read,
    inputs: Mapping[str, Any],
    *,
    dtype: Any,
    observe: Observe | None = None,
    by_rows: ByRows | None = None,
) -> list[Any]:
    """The network's outputs.

    read: a tensor of the checkpoint by name; floating ones are computed with in `dtype`. by_rows: the rows of one that
        is not to be read as a whole.
    inputs: by name, tensors of the solved topology's shapes.
    observe: called after each operation with the node, its operands and its results.
    """
    left = readers(topology)
    values: dict[str, tuple[Any, ...]] = {name: (tensor,) for name, tensor in inputs.items()}
    for node in topology.graph.nodes:
        operands = [values[ref.node][ref.output] for ref in node.inputs]
        values[node.name] = operate(topology, node, operands, read, dtype, by_rows)
        if observe is not None:
            observe(node, operands, values[node.name])
        for ref in node.inputs:
            left[ref.node] -= 1
            if left[ref.node] == 0:
                del values[ref.node]
    return [values[ref.node][ref.output] for ref in topology.graph.outputs]


def operate(
    topology: Topology, node: Node, operands: Sequence[Any], read: Read, dtype: Any, by_rows: ByRows | None = None
) -> tuple[Any, ...]:
    """The results of one operation. Raises NeedsTorch where the dtype is numpy's, and it cannot be run so."""
    op = OPS[node.op]
    run, run_rows = (op.numpy, op.numpy_by_rows) if in_numpy(dtype) else (op.run, op.by_rows)
    if run is None:
        raise NeedsTorch(node.op)
    rows = by_rows(node.params["weight"]) if by_rows is not None and run_rows is not None else None
    if rows is None or run_rows is None:
        result = run(call_of(topology, node, operands, read, dtype))
    else:
        result = run_rows(call_of(topology, node, operands, read, dtype, without="weight"), rows)
    return result if isinstance(result, tuple) else (result,)


def call_of(
    topology: Topology, node: Node, operands: Sequence[Any], read: Read, dtype: Any, without: str | None = None
) -> Call:
    """One operation of the network, with all that it needs to run; without: but for this parameter."""
    params = {role: _as(read(name), dtype) for role, name in node.params.items() if role != without}
    unit_axis = topology.value(node.inputs[0]).unit_axis if node.inputs else 0
    outputs = topology.values[node.name]
    return Call(_torch(dtype), node, operands, params, outputs, unit_axis, OPS[node.op].all_attrs(node), dtype)


def readers(topology: Topology) -> collections.Counter[str]:
    """How often each value is read; outputs count once more, so that they stay."""
    left: collections.Counter[str] = collections.Counter()
    for node in topology.graph.nodes:
        left.update(ref.node for ref in node.inputs)
    left.update(ref.node for ref in topology.graph.outputs)
    return left


def _torch(dtype: Any) -> Any:
    return None if in_numpy(dtype) else torch_at_full_precision()


def _as(tensor: Any, dtype: Any) -> Any:
    if in_numpy(dtype):  # (read in it)
        return tensor
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
