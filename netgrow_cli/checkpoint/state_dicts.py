"""Where in a training checkpoint the model's state dict lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from netgrow_cli.errors import CheckpointError

# Names that training code gives to the model's own weights, the most telling first. An average (ema) or a
# second network is none of them and must be asked for.
KNOWN_KEYS = ("state_dict", "model", "model_state_dict", "net")
_MAX_DEPTH = 4

TreePath = tuple[str | int, ...]


def find_state_dicts(tree: Any) -> dict[TreePath, Mapping[str, Any]]:
    """Every dict in the tree that holds tensors by name, by its path; optimizer states are none.

    A loss (no axes) or the state of a random generator (bytes) beside a model makes no state dict, unless
    the file has nothing else.
    """
    nodes = dict(_distinct(_dicts(tree, ())))
    weights = {path: node for path, node in nodes.items() if any(map(_is_weight, _named_tensors(node)))}
    return weights or {path: node for path, node in nodes.items() if _named_tensors(node)}


def select_state_dict(tree: Any, key: str | None, where: Path) -> tuple[TreePath, Mapping[str, Any]]:
    """The state dict at `key` ("" is the root), or the one that is meant where none is asked for."""
    if key is not None:
        return _at_key(tree, key, where)
    candidates = find_state_dicts(tree)
    if len(candidates) == 1:
        return next(iter(candidates.items()))
    if known := [path for path in candidates if path and set(path) <= set(KNOWN_KEYS)]:
        path = min(known, key=_rank)
        return path, candidates[path]
    if candidates:
        raise CheckpointError(
            f"{where} holds several state dicts: {_listing(candidates)}; say which with a key, "
            f"for example key: {_first_key(candidates)}"
        )
    raise CheckpointError(_why_none(tree, where))


def is_optimizer(node: Any) -> bool:
    """True for the state dict of a torch optimizer."""
    if not isinstance(node, dict):
        return False
    return isinstance(node.get("state"), dict) and isinstance(node.get("param_groups"), list)


def _dicts(node: Any, path: TreePath) -> Iterator[tuple[TreePath, Mapping[Any, Any]]]:
    if not isinstance(node, dict) or is_optimizer(node) or len(path) > _MAX_DEPTH:
        return
    yield path, node
    for key, value in node.items():
        if isinstance(key, str):
            yield from _dicts(value, (*path, key))


def _distinct(
    nodes: Iterator[tuple[TreePath, Mapping[Any, Any]]],
) -> Iterator[tuple[TreePath, Mapping[Any, Any]]]:
    """One dict that is in the tree at several places counts once, at the first."""
    seen: set[int] = set()
    for path, node in nodes:
        if id(node) not in seen:
            seen.add(id(node))
            yield path, node


def _named_tensors(node: Mapping[Any, Any]) -> list[torch.Tensor]:
    return [value for key, value in node.items() if isinstance(key, str) and isinstance(value, torch.Tensor)]


def _is_weight(tensor: torch.Tensor) -> bool:
    return tensor.dim() > 0 and (tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized)


def _rank(path: TreePath) -> tuple[int, ...]:
    return tuple(KNOWN_KEYS.index(str(part)) for part in path)


def _at_key(tree: Any, key: str, where: Path) -> tuple[TreePath, Mapping[str, Any]]:
    path = () if key == "" else _resolve(tree, key.split("."))
    node = tree
    for part in path or ():
        node = node[part]
    if path is not None and isinstance(node, dict) and _named_tensors(node):
        return path, node
    problem = "is not in the file" if path is None else "holds no tensors by name"
    candidates = find_state_dicts(tree)
    there = f"; state dicts are at {_listing(candidates)}" if candidates else ""
    raise CheckpointError(f"{where}: key {key!r} {problem}{there}")


def _resolve(node: Any, parts: list[str]) -> TreePath | None:
    """The path of a dotted key; a key that itself has dots is found too."""
    if not parts:
        return ()
    if isinstance(node, dict):
        for count in range(len(parts), 0, -1):
            head = ".".join(parts[:count])
            if head in node and (rest := _resolve(node[head], parts[count:])) is not None:
                return (head, *rest)
    return None


def _listing(candidates: Mapping[TreePath, Mapping[str, Any]]) -> str:
    shown = [f"{_key(path)!r} ({len(_named_tensors(node))} tensors)" for path, node in list(candidates.items())[:6]]
    more = len(candidates) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _first_key(candidates: Mapping[TreePath, Any]) -> str:
    return next(repr(_key(path)) if not path else _key(path) for path in candidates)


def _key(path: TreePath) -> str:
    return ".".join(map(str, path))


def _why_none(tree: Any, where: Path) -> str:
    if isinstance(tree, torch.Tensor):
        return f"{where} holds a single tensor, not a state dict (names to tensors)"
    if not isinstance(tree, dict):
        return f"{where} holds a {type(tree).__name__}, not a state dict (names to tensors)"
    for _, node in _dicts(tree, ()):
        for key, value in node.items():
            if isinstance(value, torch.Tensor) and not isinstance(key, str):
                return f"{where}: tensor names must be text; found {key!r} ({type(key).__name__})"
    keys = ", ".join(repr(key) for key in list(tree)[:6])
    return f"{where} holds no model weights; its keys are {keys}" if keys else f"{where} holds an empty dict"
