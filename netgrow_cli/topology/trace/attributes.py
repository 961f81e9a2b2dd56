"""Which attribute of a module holds a number of the graph: `attn.num_heads` for the 4 of `view(2, 9, 4, 8)`.

An exported graph has numbers only. The module whose operation it is, and its code, tell where they came from: the
attribute that the code names at that place; where the call cannot be read, the one that its line names, or the only
attribute of the module that has this value. Where that leaves more than one, none is named.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import linecache
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.trace.methods import entry_of_list, held_in_method
from netgrow_cli.topology.trace.reading import frames, module_paths, operation

# Numbers of a module that are no sizes, whatever their value.
_NO_SIZES = re.compile(
    r"idx|index|layer_id|kdim|vdim|depth|stage|kernel|stride|padding|dilation|dropout|iteration|version|rank$"
)
# What the functions that do a module's work call what it keeps under another name.
_INNER_NAMES = {"embed_dim_to_check": "embed_dim", "E": "embed_dim"}
_LONGEST_FUNCTION = 400


class Attributes:
    """Finds the attributes of one model's modules."""

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._modules = modules

    def may_be_computed(self, node: Any, what: str, count: int) -> bool:
        """Whether the code may take a number from the shape of a tensor: it does, or the call cannot be read."""
        stated = _stated_in_call(node, what, count)
        return stated.from_shape or stated.name is None

    def of(self, node: Any, what: str, value: Any, count: int = 1) -> str | None:
        """The path of the attribute that holds a number of a node, None where it cannot be told.

        what: the setting, as a spec names it: `shape[2]`. value: the number, or a tuple of several. count: how many
        entries the setting has. `3 * attn.head_dim` where the code multiplies it by a number.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float, tuple)) or value in (0, 1, -1):
            return None
        inside = self._in_method(node, what, value, count)
        if inside is not None:
            return inside
        stated, named = _stated_in_call(node, what, count), words(node)
        if stated.times != 1 and (not isinstance(value, int) or value % stated.times):
            return None
        wanted = value // stated.times if isinstance(value, int) else value
        for inner, path in enumerate(self._around(node)):
            found = _held(self._modules[path], what, stated, named, wanted, innermost=inner == 0)
            if found is not None:
                place = f"{path}.{found}" if path else found
                return place if stated.times == 1 else f"{stated.times} * {place}"
        return None

    def _in_method(self, node: Any, what: str, value: Any, count: int) -> str | None:
        """The entry of a list that a module keeps, or what a method holds which the innermost line calls."""
        place, lines = re.fullmatch(r"\w+\[(\d+)\]", what), frames(node)
        path = next(self._around(node), None)
        if place is None or not lines or path is None or not isinstance(value, int):
            return None
        module, call = self._modules[path], _call_at(*lines[-1], _family(node))
        if call is not None:
            found = entry_of_list(module, call.args, int(place[1]), value, count)
        else:
            found = held_in_method(module, lines[-1], _family(node), int(place[1]), value)
        return f"{path}.{found}" if found and path else found

    def _around(self, node: Any) -> Iterator[str]:
        """The modules that a node belongs to, innermost first."""
        yield from (path for path in reversed(module_paths(node)) if path in self._modules)


def _held(module: Any, what: str, stated: Stated, words: frozenset[str], value: Any, *, innermost: bool) -> str | None:
    """The attribute of a module that has a value and is meant."""
    found = [
        name
        for name, held in vars(module).items()
        if type(held) is type(value) and held == value and not _NO_SIZES.search(name) and name[0] != "_"
    ]
    if stated.name in found:
        return stated.name
    if not innermost or not stated.may_be_other:
        return None
    # A local variable, or a call that cannot be read: the one that the line names, or the only one there is.
    # (How often something is repeated, `sizes[2]`, is no count of heads: keys are repeated for groups of them.)
    named = [name for name in found if name in words] or found
    named = [name for name in named if not (what.startswith("sizes[") and name.endswith("heads"))]
    return named[0] if len(named) == 1 else None


@frozen
class Stated:
    """What the model's code says at the place of a setting: a name, and whether it may stand for another one.

    times: what the name is multiplied by. from_shape: whether it is taken from the shape of a tensor.
    """

    name: str | None
    may_be_other: bool
    times: int = 1
    from_shape: bool = False


def words(node: Any) -> frozenset[str]:
    """The attributes that the lines name which led to a node: functions are given a module, and read it there."""
    return frozenset(
        word for file, line in frames(node) for word in re.findall(r"\.(\w+)", linecache.getline(file, line))
    )


def _stated_in_call(node: Any, what: str, count: int) -> Stated:
    """What the model's code says at the place of a setting: `num_heads` for `x.view(b, t, num_heads, d)`."""
    place = re.fullmatch(r"sizes|\w+\[(\d+)\]", what)
    for file, line in reversed(frames(node)):
        call = _call_at(file, line, _family(node))
        if call is None:
            continue
        arguments = _entries(list(call.args), file, line)
        position = int(place[1] or 0) if place else 0
        starred = next((n for n, part in enumerate(arguments) if isinstance(part, ast.Starred)), len(arguments))
        if starred <= position and starred < len(arguments):  # `(*shape, -1, head_dim)`: counted from the end
            arguments = list(itertools.takewhile(lambda part: not isinstance(part, ast.Starred), reversed(arguments)))
            position = count - 1 - position
        if place is None or position >= len(arguments):
            break
        return _stated(arguments[position], file, line)
    return Stated(None, True)


def _entries(arguments: list[ast.expr], file: str, line: int) -> list[ast.expr]:
    """The entries of a shape: the call's arguments, those of a tuple, or of a variable that was made one."""
    while arguments and isinstance(arguments[0], (ast.Tuple, ast.List)):
        arguments = list(arguments[0].elts)
    if len(arguments) == 1 and isinstance(arguments[0], ast.Name):
        made = _assigned(file, line, arguments[0].id)
        if isinstance(made, ast.BinOp) and isinstance(made.op, ast.Add) and isinstance(made.right, ast.Tuple):
            return [ast.Starred(made.left), *made.right.elts]  # `x.shape[:-1] + (heads, size)`
        return list(made.elts) if isinstance(made, (ast.Tuple, ast.List)) else arguments
    return arguments


def _stated(expression: ast.expr, file: str, line: int) -> Stated:
    if isinstance(expression, ast.Attribute):
        return Stated(expression.attr, False)
    if isinstance(expression, ast.Name):
        taken = _from_shape(file, line, expression.id)
        return Stated(_INNER_NAMES.get(expression.id, expression.id), not taken, from_shape=taken)
    if isinstance(expression, ast.Constant):
        return Stated(str(expression.value), False)
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Mult):
        for one, other in ((expression.left, expression.right), (expression.right, expression.left)):
            if isinstance(one, ast.Constant) and isinstance(one.value, int) and one.value > 1:
                return dataclasses.replace(_stated(other, file, line), times=one.value)
    return Stated(None, False)  # computed: `x.size(-1)`, `dim // heads`


@functools.lru_cache(maxsize=4096)
def _assigned(file: str, line: int, name: str) -> ast.expr | None:
    """What a local variable was last made on one line before that line, in the same function."""
    for number in range(line - 1, max(0, line - _LONGEST_FUNCTION), -1):
        text = linecache.getline(file, number).strip()
        if re.match(rf"{re.escape(name)}\s*=[^=]", text):
            try:
                made = ast.parse(text).body[0]
            except SyntaxError:
                return None
            return made.value if isinstance(made, ast.Assign) else None
        if text.startswith("def "):
            break
    return None


@functools.lru_cache(maxsize=4096)
def _from_shape(file: str, line: int, name: str) -> bool:
    """Whether a function takes a local variable from the shape of a tensor, before that line."""
    assigned = re.compile(rf"\s*[\w\s,()*]*\b{re.escape(name)}\b[\w\s,()*]*=[^=].*\.(shape|size)\b")
    for number in range(line, max(0, line - _LONGEST_FUNCTION), -1):
        text = linecache.getline(file, number)
        if assigned.match(text):
            return True
        if re.match(r"\s*def ", text):
            break
    return False


@functools.lru_cache(maxsize=4096)
def _call_at(file: str, line: int, names: tuple[str, ...]) -> ast.Call | None:
    """The call of one of these names that a line makes; None where there are several, or none."""
    text = linecache.getline(file, line) if Path(file).suffix == ".py" else ""
    for candidate in (text.strip(), text.strip().rstrip(":"), f"{text.strip()})"):
        try:
            tree = ast.parse(candidate)
        except SyntaxError:
            continue
        calls = [part for part in ast.walk(tree) if isinstance(part, ast.Call) and _name(part) in names]
        return calls[0] if len(calls) == 1 else None
    return None


def _name(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _family(node: Any) -> tuple[str, ...]:
    """What code calls an operation of the graph."""
    name = operation(node.target)
    families = (("view", "reshape", "unflatten"), ("split", "split_with_sizes", "chunk"))
    return next((family for family in families if name in family), (name,))
