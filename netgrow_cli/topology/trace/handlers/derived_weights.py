"""What computes weights from parameters is put off until something reads it as a value.

So it is neither a layer of the spec nor an operation without a rule, where only layers read it that have a rule for it.
"""

from __future__ import annotations

from typing import Any

from netgrow_cli.topology.trace.convert import Converter, Handler
from netgrow_cli.topology.trace.derived import standardized, weight_of
from netgrow_cli.topology.trace.handlers import axes, layers


def _put_off(handlers: dict[str, Handler], name: str) -> Handler:
    """The handler of that name where a node is no such weight, nor a step to one."""
    otherwise = handlers.get(name, _unknown)

    def handler(made: Converter, node: Any) -> bool:
        if weight_of(made, node) is None and standardized(made, node) is None:
            return otherwise(made, node)
        made.put_off(node, otherwise)
        return True

    return handler


def _unknown(_: Converter, __: Any) -> bool:
    return False


HANDLERS: dict[str, Handler] = {
    "_weight_norm": _put_off({}, "_weight_norm"),
    "batch_norm": _put_off(layers.HANDLERS, "batch_norm"),
    "_native_batch_norm_legit": _put_off({}, "_native_batch_norm_legit"),
    **{
        name: _put_off(axes.HANDLERS, name)
        for name in ("reshape", "view", "_unsafe_view", "flatten", "reshape_as", "view_as")
    },
}
