"""Inside a method that a line of the model's code calls: `self.rel_pos.get_bias()`.

Torch's record of where an operation came from ends at the last `forward`. What a module's other methods do with the
numbers that it keeps is read from their source.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any


def held_in_method(module: Any, frame: tuple[str, int], names: Sequence[str], place: int, value: int) -> str | None:
    """Where a method that is called on that line keeps a number: `rel_pos.bias_shape[2]`, as seen from the module.

    names: what the operation is called in code. place: which entry of its shape the number is. None where the call
    cannot be read, or leaves open which attribute is meant.
    """
    found = set()
    for path, method in _methods(frame):
        owner = _at(module, path)
        for arguments in _shapes(getattr(type(owner), method, None), tuple(names)):
            attribute = _entry(owner, arguments, place, value)
            if attribute is not None:
                found.add(".".join((*path, attribute)))
    return found.pop() if len(found) == 1 else None


def entry_of_list(owner: Any, arguments: Sequence[ast.expr], place: int, value: int, count: int) -> str | None:
    """`input_split[1]` for a number of `torch.split(x, self.input_split, 1)`: a list of so many that a module keeps."""
    for chain in map(_chain, arguments):
        held = getattr(owner, chain[0], None) if len(chain) == 1 else None
        if isinstance(held, (tuple, list)) and len(held) == count and held[place] == value:
            return f"{chain[0]}[{place}]"
    return None


def _methods(frame: tuple[str, int]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Methods of a module or of what it holds that a line calls: `self.rel_pos.get_bias()`."""
    try:
        tree = ast.parse(linecache.getline(*frame).strip())
    except SyntaxError:
        return
    for part in ast.walk(tree):
        if isinstance(part, ast.Call) and (chain := _chain(part.func)):
            yield chain[:-1], chain[-1]


def _chain(expression: ast.expr) -> tuple[str, ...]:
    """`self.a.b` as (a, b)."""
    if isinstance(expression, ast.Attribute):
        if isinstance(expression.value, ast.Name) and expression.value.id == "self":
            return (expression.attr,)
        before = _chain(expression.value)
        return (*before, expression.attr) if before else ()
    return ()


def _at(module: Any, path: Sequence[str]) -> Any:
    for name in path:
        module = getattr(module, name, None)
    return module


@functools.lru_cache(maxsize=1024)
def _shapes(method: Any, names: tuple[str, ...]) -> tuple[tuple[ast.expr, ...], ...]:
    """The arguments of all calls of one of these names in a method."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return ()
    calls = [part for part in ast.walk(tree) if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute)]
    return tuple(tuple(call.args) for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in names)


def _entry(owner: Any, arguments: Sequence[ast.expr], place: int, value: int) -> str | None:
    """The attribute behind one entry of a shape, if it holds the number."""
    if len(arguments) == 1 and len(chain := _chain(arguments[0])) == 1:
        held = getattr(owner, chain[0], None)
        if isinstance(held, (tuple, list)) and place < len(held) and held[place] == value:
            return f"{chain[0]}[{place}]"
    if place < len(arguments) and len(chain := _chain(arguments[place])) == 1:
        held = getattr(owner, chain[0], None)
        if type(held) is int and held == value:
            return chain[0]
    return None
