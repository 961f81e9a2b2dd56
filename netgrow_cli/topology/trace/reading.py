"""Reading the nodes of an exported graph: names, shapes, arguments, places in the model's code."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
# These may give back the very tensor they read, which torch's own record does not always show.
_DROPOUT = ("dropout", "feature_dropout", "alpha_dropout")
_PASSING = (*_DROPOUT, "to", "contiguous", "type_as", "reshape", "flatten")


def operation(target: Any) -> str:
    """The plain name of an operation: `relu` for `aten.relu_.default`."""
    schema = getattr(target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(target, "__name__", str(target))
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def mutates(graph: Any) -> bool:
    """Whether an operation in place changes memory that is read under another name, or under an old one, later on.

    Elsewhere an operation in place is simply its value. A graph that needs it is made functional by torch, at the
    price of some of the places in the model's code.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    memory: dict[Any, Any] = {}
    names: dict[Any, list[Any]] = collections.defaultdict(list)
    for node in graph.nodes:
        if any(_is_mutable(part) for inner in _inner(node) for part in inner.nodes):
            return True
        if _is_mutable(node):
            changed = node.args[0] if node.args else None
            if changed not in memory:
                return True
            if any(order[user] > order[node] for name in names[memory[changed]] for user in name.users):
                return True
        memory[node] = _memory(node, memory)
        names[memory[node]].append(node)
    return False


def size_from_values(graph: Any) -> Any:
    """The first node whose size only a run can tell; None where there is none."""
    import torch

    for node in graph.nodes:
        for value in as_list(node.meta.get("val")):
            if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                return node
            if any(isinstance(size, torch.SymInt) for size in getattr(value, "shape", ())):
                return node
        found = next((size_from_values(inner) for inner in _inner(node)), None)
        if found is not None:
            return found
    return None


def drop_dropout(graph: Any) -> None:
    """Read through dropout, which gives back its operand in evaluation, where torch would make a copy of it."""
    for node in list(graph.nodes):
        if node.op == "call_function" and operation(node.target) in _DROPOUT:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_mutable(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _inner(node: Any) -> list[Any]:
    """The graphs of what runs under `no_grad` or autocast."""
    places = [argument for argument in node.args if getattr(argument, "op", None) == "get_attr"]
    found = [getattr(getattr(node.graph.owning_module, place.target, None), "graph", None) for place in places]
    return [graph for graph in found if graph is not None]


def _memory(node: Any, known: Mapping[Any, Any]) -> Any:
    """What tells the memory of a node's value from that of others."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    if source in known and (_is_mutable(node) or operation(node.target) in _PASSING or _is_part(node)):
        return known[source]
    values = [value for value in as_list(node.meta.get("val")) if hasattr(value, "untyped_storage")]
    return values[0].untyped_storage()._cdata if values else node


def _is_part(node: Any) -> bool:
    """Whether it is one of several results that may share memory; those of topk and the like do not."""
    if operation(node.target) != "getitem":
        return False
    schema = getattr(getattr(node.args[0], "target", None), "_schema", None)
    return schema is None or any(item.alias_info is not None for item in schema.returns)


def frames(node: Any) -> list[tuple[str, int]]:
    """File and line of the calls that led to a node, outermost first."""
    return [(file, int(line)) for file, line in _FRAME.findall(node.meta.get("stack_trace") or "")]


def module_paths(node: Any) -> list[str]:
    """The paths of the modules around a node, outermost first; a module that is called again is the same one."""
    return [re.sub(r"@\d+$", "", entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]


def source_line(node: Any) -> str | None:
    """File and line of the innermost frame outside torch."""
    found = frames(node)
    own = [frame for frame in found if "/torch/" not in frame[0]] or found
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
