"""Other state dicts of a file that hold the same network: averages of its weights, target networks, twins.

Which of them change along is decided by what they hold and by their names, never by shapes alone: the twin critics of
an actor-critic have the same names and shapes, and units that are dead in the one are alive in the other. So
only what is named as a state of the same network is (`_STATES`), once the rest of its name is the model's.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from netgrow_cli.checkpoint.names import is_buffer, strip_wrappers
from netgrow_cli.checkpoint.optimizer import may_be_parameter
from netgrow_cli.checkpoint.state_dicts import TreePath, find_state_dicts, is_optimizer
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.frozen import frozen

_STATES = frozenset(
    "ema average averaged averages avg swa polyak target targets tgt best shadow teacher slow lagged current".split()
)
# Words that say nothing about which network it is.
_GENERIC = frozenset(
    "model models module modules net nets network networks state states dict dicts statedict weights weight params "
    "parameters sd checkpoint ckpt online student live raw orig the of".split()
)
_LISTED = frozenset(("params", "parameters", "weights"))

Relation = Literal["average", "twin", "other"]


@frozen
class Sibling:
    """A state dict, the part of one under a prefix, or a list of parameters, with tensors named as the model's.

    path, prefix: where it lies. values: its tensors by the model's names; keys: what they are there. relation:
    "average" for a state of the same network by its name, "twin" for the same names and shapes, "other" where shapes
    or names differ. why: what differs.
    """

    path: TreePath
    prefix: str
    values: Mapping[str, torch.Tensor]
    keys: Mapping[str, str | int]
    relation: Relation
    why: str = ""

    @property
    def label(self) -> str:
        """What it is called in messages and for `--also`."""
        own = strip_wrappers(f"{self.prefix}x")[:-1] or ("" if self.path else self.prefix)
        return ".".join([*map(str, self.path), *([own.rstrip(".")] if own else [])])

    def read_from(self, tree: Any) -> dict[str, torch.Tensor]:
        """The tensors at the same places of another tree, by the model's names."""
        node = tree
        for part in self.path:
            node = node[part]
        return {name: node[key] for name, key in self.keys.items()}


def find_siblings(
    tree: Any, path: TreePath, prefix: str, tensors: Mapping[str, TensorInfo], changed: Sequence[str]
) -> list[Sibling]:
    """All siblings of the model at a path and prefix that hold any of the tensors that change."""
    found = []
    for place, node in find_state_dicts(tree).items():
        named = {key: value for key, value in node.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
        own = {prefix + name for name in tensors} if place == path else set()
        prefixes = _prefixes(named, own, tensors, changed)
        found += [_sibling(place, p, prefixes, named, tensors) for p in prefixes]
    found += [_listed(place, values, tensors) for place, values in _lists(tree, ())]
    return [_related(sibling, path, prefix, found) for sibling in found]


def partial_prefix(names: Sequence[str], prefix: str) -> bool:
    """Whether a prefix is on one of several copies of the same names, as in `model.` beside `ema_model.`."""
    own = {name[len(prefix) :] for name in names if name.startswith(prefix)}
    others = [name for name in names if not name.startswith(prefix)]
    return bool(own) and all(any(f".{name}".endswith(f".{short}") for short in own) for name in others)


def _prefixes(
    named: Collection[str], own: Collection[str], tensors: Collection[str], changed: Sequence[str]
) -> list[str]:
    """What stands before changed names, the shortest first; `layers.0.norm.weight` is no `norm.weight` of another.

    own: names that are the model's itself.
    """
    ends: dict[str, list[str]] = collections.defaultdict(list)
    for key in named:
        parts = key.split(".")
        for count in range(len(parts)):
            ends[".".join(parts[count:])].append(key)
    found: list[str] = []
    claimed = set(own)
    heads = {key[: -len(name)] for name in changed for key in ends.get(name, ()) if key not in claimed}
    for head in sorted(heads, key=lambda head: (len(head), head)):
        if any(head + name in named and head + name not in claimed for name in changed):
            found.append(head)
            claimed |= {head + name for name in tensors}
    return found


def _sibling(
    place: TreePath,
    prefix: str,
    prefixes: Sequence[str],
    named: Mapping[str, torch.Tensor],
    tensors: Mapping[str, TensorInfo],
) -> Sibling:
    values = {name: named[prefix + name] for name in tensors if prefix + name in named}
    sizes = (
        f"{name} is {list(value.shape)} there and {list(tensors[name].shape)} in the model"
        for name, value in values.items()
        if tuple(value.shape) != tensors[name].shape
    )
    missing = (f"it has no {name}" for name, info in tensors.items() if name not in values and not is_buffer(info.name))
    inner = [other for other in prefixes if other != prefix and other.startswith(prefix)]
    more = (
        f"it has {key} too"
        for key, value in named.items()
        if key.startswith(prefix)
        and key[len(prefix) :] not in tensors
        and value.dim() > 0
        and value.is_floating_point()
        and not any(key.startswith(other) for other in inner)
    )
    why = next(sizes, None) or next(missing, None) or next(more, None)
    keys = {name: prefix + name for name in values}
    return Sibling(place, prefix, values, keys, "other" if why else "twin", why or "")


def _lists(node: Any, path: TreePath) -> Iterator[tuple[TreePath, Sequence[torch.Tensor]]]:
    """Lists of weights in the tree that are named as a state of a network, as `shadow_params` of torch_ema is."""
    if isinstance(node, dict) and not is_optimizer(node):
        for key, value in node.items():
            yield from _lists(value, (*path, key))
    elif isinstance(node, (list, tuple)) and node and all(isinstance(value, torch.Tensor) for value in node):
        words = set(_words(path[-1:], ""))
        if words & _STATES and words & _LISTED:
            yield path, node


def _listed(place: TreePath, values: Sequence[torch.Tensor], tensors: Mapping[str, TensorInfo]) -> Sibling:
    """A list without names is in the order of the model's parameters, which their sizes must bear out."""
    names = [name for name, info in tensors.items() if may_be_parameter(info)]
    sizes = [tuple(value.shape) for value in values]
    if sizes != [tensors[name].shape for name in names]:
        return Sibling(
            place, "", {}, {}, "other", "a list whose sizes in order are not those of the model's parameters"
        )
    keys = dict(zip(names, range(len(names)), strict=True))
    return Sibling(place, "", dict(zip(names, values, strict=True)), keys, "twin")


def _related(sibling: Sibling, path: TreePath, prefix: str, every: Sequence[Sibling]) -> Sibling:
    """What a sibling is by its name: a state of the model where the rest of the name is that of the model."""
    if sibling.relation == "other":
        return sibling
    mine, own = _words(path, prefix), _words(sibling.path, sibling.prefix)
    shared = _common(mine, own)
    mine, own = mine[shared:], own[shared:]
    if not _STATES & set(own):
        return sibling
    rest = [word for word in own if word not in _STATES | _GENERIC]
    which = [word for word in mine if word not in _STATES | _GENERIC]
    alone = not any(_is_another(other, sibling) for other in every)
    if rest == which or (not rest and alone):
        return dataclasses.replace(sibling, relation="average")
    return sibling


def _is_another(other: Sibling, sibling: Sibling) -> bool:
    """Whether this is one more network of which the sibling could be a state."""
    if other is sibling or other.relation == "other":
        return False
    return not _STATES & set(_words(other.path, other.prefix))


def _words(path: TreePath, prefix: str) -> list[str]:
    """The words of a place: `state_dict_ema`, `emaModel`, `q1`."""
    text = ".".join([*map(str, path), strip_wrappers(f"{prefix}x")[:-1]])
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+", text)]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    pairs: Iterator[tuple[str, str]] = zip(one, other, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
