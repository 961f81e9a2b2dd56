"""A loaded object tree with some of its values replaced; what does not change is shared, not copied."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from netgrow_cli.checkpoint.state_dicts import TreePath


class _Removed:
    def __repr__(self) -> str:
        return "REMOVED"


REMOVED: Final = _Removed()
"""As a replacement: take the key out of its dict."""


def at(tree: Any, path: TreePath) -> Any:
    """The value at a path; ValueError where there is none."""
    node = tree
    for depth, part in enumerate(path):
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"nothing is at {path[: depth + 1]} to replace") from None
    return node


def rebuild(tree: Any, edits: Mapping[TreePath, Any]) -> Any:
    """The tree with the values at the paths replaced.

    Types, order and attributes of containers are kept (a state dict's `_metadata` is one). A container that
    is in the tree at several places is changed at all of them, as it is one object to whoever loads it.
    """
    if () in edits:
        if len(edits) > 1:
            raise ValueError("the root and something below it cannot both be replaced")
        return edits[()]
    by_place: dict[tuple[int, Any], Any] = {}
    for path, value in edits.items():
        if any(path[:length] in edits for length in range(1, len(path))):
            raise ValueError(f"{path} lies below another path that is replaced")
        at(tree, path)
        by_place[id(at(tree, path[:-1])), path[-1]] = value
    return _rebuild(tree, by_place, {})


def _rebuild(node: Any, edits: Mapping[tuple[int, Any], Any], done: dict[int, Any]) -> Any:
    if not isinstance(node, (dict, list, tuple)):
        return node
    if id(node) in done:
        return done[id(node)]
    done[id(node)] = node  # a container inside itself stays the old one there
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
    changed: dict[Any, Any] = {}
    for key, old in items:
        new = edits[id(node), key] if (id(node), key) in edits else _rebuild(old, edits, done)
        if new is not old:
            changed[key] = new
    done[id(node)] = with_items(node, changed)
    return done[id(node)]


def with_items(node: Any, changed: Mapping[Any, Any]) -> Any:
    """A copy of a dict, list or tuple with some items replaced; the container itself if none are."""
    if not changed:
        return node
    if isinstance(node, tuple):
        if any(value is REMOVED for value in changed.values()):
            raise ValueError("an item of a tuple cannot be removed")
        items = [changed.get(index, item) for index, item in enumerate(node)]
        return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)
    new = copy.copy(node)
    for key in sorted(changed, reverse=True) if isinstance(node, list) else changed:
        if changed[key] is REMOVED:
            del new[key]
        else:
            new[key] = changed[key]
    return new
