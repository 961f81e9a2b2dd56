"""Reading the nodes of an exported graph: names, shapes, arguments, places in the model's code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_VIEWS = ("slice", "select", "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "t", "chunk")


def operation(target: Any) -> str:
    """The plain name of an operation: `relu` for `aten.relu_.default`."""
    schema = getattr(target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(target, "__name__", str(target))
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def mutates(graph: Any) -> bool:
    """Whether an operation in place changes a value that is read under its old name, or a view of another.

    Elsewhere an operation in place is simply its value. A graph that needs it is made functional by torch, at the
    price of some of the places in the model's code.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable or not node.args:
            continue
        changed = node.args[0]
        if operation(changed.target) in _VIEWS or any(order[user] > order[node] for user in changed.users):
            return True
    return False


def source_line(node: Any) -> str | None:
    """File and line of the innermost frame outside torch."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else None


def functional_form(call: str) -> str:
    """The form of an operation that leaves its operand alone."""
    name, _, overload = call.removeprefix("aten.").partition(".")
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return f"aten.{plain}.{overload}"


def is_tensor(node: Any) -> bool:
    return hasattr(node.meta.get("val"), "shape")


def is_float(node: Any) -> bool:
    return is_tensor(node) and bool(node.meta["val"].dtype.is_floating_point)


def shape(node: Any) -> list[int]:
    return shape_of(node.meta["val"])


def shape_of(value: Any) -> list[int]:
    return [int(size) for size in value.shape]


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def argument(node: Any, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or by name; schemas' own defaults where the call leaves it out."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def one_if_equal(value: Any) -> Any:
    """A list of equal numbers as one."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(set(value)) == 1 else list(value)
    return value
