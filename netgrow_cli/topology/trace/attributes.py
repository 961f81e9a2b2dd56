"""Which attribute of a module holds a number of the graph: `attn.num_heads` for the 4 of `view(2, 9, 4, 8)`.

An exported graph has numbers only. The module whose operation it is, and its code, tell where they came from: the
attribute that the code names at that place, or the one attribute of the module that has this value, of several the
one that its code reads. Where that leaves more than one, none is named.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import linecache
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from netgrow_cli.topology.trace.reading import frames

# Numbers of a module that are no sizes, whatever their value.
_NO_SIZES = re.compile(r"idx|index|layer_id|depth|stage|kernel|stride|padding|dilation|dropout|iteration|version|rank$")
# What the functions that do a module's work call what it keeps under another name.
_INNER_NAMES = {"embed_dim_to_check": "embed_dim", "E": "embed_dim"}
_LONGEST_FUNCTION = 400


class Attributes:
    """Finds the attributes of one model's modules."""

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._modules = modules

    def of(self, node: Any, what: str, value: Any) -> str | None:
        """The path of the attribute that holds a number of a node, None where it cannot be told.

        what: the setting, as a spec names it: `shape[2]`. value: the number.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value in (0, 1, -1):
            return None
        stated, words = _stated_in_call(node, what), _words(node)
        for inner, path in enumerate(self._around(node)):
            found = self._in(self._modules[path], stated, words, value, innermost=inner == 0)
            if found is not None:
                return f"{path}.{found}" if path else found
        return None

    def _around(self, node: Any) -> Iterator[str]:
        """The modules that a node belongs to, innermost first."""
        stack = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
        for path in reversed(stack):
            plain = re.sub(r"@\d+$", "", path)
            if plain in self._modules:
                yield plain

    def _in(self, module: Any, stated: Stated, words: frozenset[str], value: float, *, innermost: bool) -> str | None:
        kind: Any = type(module)
        found = [
            name
            for name, held in vars(module).items()
            if type(held) is type(value) and held == value and not _NO_SIZES.search(name) and name[0] != "_"
        ]
        if stated.name in found:
            return stated.name
        # A local variable, or a call that cannot be read: the module's one number of this value.
        read = [name for name in found if name in _named_in_code(kind) | words] or found
        return read[0] if innermost and len(read) == 1 and stated.may_be_other else None


@dataclasses.dataclass(frozen=True)
class Stated:
    """What the model's code says at the place of a setting: a name, and whether it may stand for another one."""

    name: str | None
    may_be_other: bool


@functools.cache
def _named_in_code(kind: Any) -> frozenset[str]:
    """The attributes of `self` that a module's class reads outside its constructor."""
    named: set[str] = set()
    for base in kind.__mro__:
        if base.__module__ == "torch.nn.modules.module" or base is object:
            break
        for name, member in vars(base).items():
            if name != "__init__" and inspect.isfunction(member):
                named |= _reads(member)
    return frozenset(named)


def _words(node: Any) -> frozenset[str]:
    """The attributes that the lines name which led to a node: functions are given a module, and read it there."""
    return frozenset(
        word for file, line in frames(node) for word in re.findall(r"\.(\w+)", linecache.getline(file, line))
    )


def _reads(function: Any) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return set()
    return {
        part.attr
        for part in ast.walk(tree)
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
    }


def _stated_in_call(node: Any, what: str) -> Stated:
    """What the model's code says at the place of a setting: `num_heads` for `x.view(b, t, num_heads, d)`."""
    place = re.fullmatch(r"\w+\[(\d+)\]", what)
    for file, line in reversed(frames(node)):
        call = _call_at(file, line)
        if call is None:
            continue
        arguments = list(call.args)
        while arguments and isinstance(arguments[0], (ast.Tuple, ast.List)):
            arguments = list(arguments[0].elts)
        position = int(place[1]) if place else 0
        if place is None or position >= len(arguments) or any(isinstance(part, ast.Starred) for part in arguments):
            break
        stated = arguments[position]
        if isinstance(stated, ast.Attribute):
            return Stated(stated.attr, False)
        if isinstance(stated, ast.Name):
            return Stated(_INNER_NAMES.get(stated.id, stated.id), not _from_shape(file, line, stated.id))
        return Stated(None, False)  # computed: `x.size(-1)`, `dim // heads`
    return Stated(None, True)


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
def _call_at(file: str, line: int) -> ast.Call | None:
    """The reshape, split or the like that a line makes; None where there are several, or none."""
    text = linecache.getline(file, line) if Path(file).suffix == ".py" else ""
    for candidate in (text.strip(), text.strip().rstrip(":"), f"{text.strip()})"):
        try:
            tree = ast.parse(candidate)
        except SyntaxError:
            continue
        calls = [part for part in ast.walk(tree) if isinstance(part, ast.Call) and _cuts(part)]
        return calls[0] if len(calls) == 1 else None
    return None


def _cuts(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name in ("view", "reshape", "unflatten", "split", "chunk", "expand", "split_with_sizes", "narrow")
