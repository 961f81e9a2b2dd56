"""Optimizers in the file follow: which state dict each belongs to, and what takes the place of its entries."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from netgrow_cli.checkpoint.detect import detect
from netgrow_cli.checkpoint.names import common_prefix
from netgrow_cli.checkpoint.optimizer import OptimizerState, ParameterId, find_flat, find_optimizers, readings
from netgrow_cli.checkpoint.optimizer_kinds import why_unknown
from netgrow_cli.checkpoint.state_dicts import TreePath
from netgrow_cli.checkpoint.torch_load import load_tree
from netgrow_cli.checkpoint.torch_tree import REMOVED, at, rebuild
from netgrow_cli.checkpoint.torch_writer import DeferredTensor, TorchWriter
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import CheckpointError
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.moments import edit_average, edit_moment
from netgrow_cli.surgery.tensor_edits import TensorEdit

# One optimizer for more networks than these is not looked for.
_MOST_JOINT = 4
_GENERIC = frozenset(
    "optimizer optimizers optim optims opt opts state states dict dicts statedict sd adam adamw".split()
)


@frozen
class Owner:
    """A state dict that an optimizer may belong to.

    infos: its tensors; edits: those of them that change; read: one of them. prefix: what its names have in front of
    them in the file, where it was taken off. match: how an optimizer's ids are told, if otherwise than by `readings`.
    """

    path: TreePath
    infos: Mapping[str, TensorInfo]
    edits: Mapping[str, TensorEdit]
    read: Callable[[str], torch.Tensor]
    prefix: str = ""
    match: Callable[[OptimizerState], dict[ParameterId, str]] | None = None

    def readings(self, optimizer: OptimizerState) -> list[dict[ParameterId, str]]:
        """All that an optimizer's ids may mean. Raises CheckpointError."""
        if self.match is not None:
            return [self.match(optimizer)]
        return readings(optimizer, self.infos, self.prefix)

    def joined(self, other: Owner) -> Owner:
        """Both, one after the other, as an optimizer has them that was given the parameters of both."""
        reads = {(0, name): self.read for name in self.infos} | {(1, name): other.read for name in other.infos}
        keys = {f"{part}/{name}": (part, name) for part, name in reads}
        infos, edits = (self.infos, other.infos), (self.edits, other.edits)
        return Owner(
            self.path,
            {key: infos[part][name] for key, (part, name) in keys.items()},
            {key: edits[part][name] for key, (part, name) in keys.items() if name in edits[part]},
            lambda key: reads[keys[key]](keys[key][1]),
        )


@frozen
class Followed:
    """What becomes of one optimizer: how many parameters' entries change."""

    label: str
    kind: str
    changed: int

    def as_json(self) -> dict[str, Any]:
        """Its entry under `optimizers`."""
        return {"key": self.label, "kind": self.kind, "changed": self.changed}


def drop_optimizers(tree: Any) -> dict[TreePath, Any]:
    """All optimizers out of the tree; one in a tuple, whose places count, becomes None."""
    paths = [tuple(optimizer.path) for optimizer in find_optimizers(tree)]
    paths += [path for path in find_flat(tree) if path]
    outer = [path for path in paths if not any(path[:length] in paths for length in range(len(path)))]
    return {path: None if isinstance(at(tree, path[:-1]), tuple) else REMOVED for path in outer}


@frozen
class OptimizerFile:
    """A file that holds optimizers and no model (`optimizer.pt`), and what takes the place of what in it."""

    name: str
    tree: Any
    replaced: Mapping[TreePath, Any]
    followed: tuple[Followed, ...]

    def write(self, target: Path) -> None:
        """Write the edited file; a moment is made when it is written."""
        made = TorchWriter(
            target,
            [],
            lambda _, write: rebuild(self.tree, {place: write(value) for place, value in self.replaced.items()}),
        )
        made.finish()


def optimizer_file(source: Path, owners: Sequence[Owner], seed: int) -> OptimizerFile:
    """Open a file of optimizers and decide what becomes of it. Raises CheckpointError where that cannot be told."""
    tree = load_tree(source, detect(source))
    replaced, followed = edit_optimizers(tree, owners, seed)
    named = tuple(dataclasses.replace(one, label=f"{source.name}:{one.label}") for one in followed)
    return OptimizerFile(source.name, tree, replaced, named)


def edit_optimizers(tree: Any, owners: Sequence[Owner], seed: int) -> tuple[dict[TreePath, Any], list[Followed]]:
    """What takes the place of entries, by path into the tree. Raises CheckpointError where that cannot be told."""
    replaced: dict[TreePath, Any] = {}
    if any(owner.edits for owner in owners):
        for path, what in find_flat(tree).items():
            raise CheckpointError(
                f"{'.'.join(map(str, path)) or 'the file'} holds {what}, which netgrow cannot change; pass "
                "--drop-optimizer to leave it out, or convert the checkpoint to a plain one first"
            )
    followed = []
    for optimizer in find_optimizers(tree):
        entries, names = _edited(optimizer, owners, seed)
        replaced.update(entries)
        replaced.update(names)
        changed = len({path[-2] for path in entries})
        followed.append(Followed(optimizer.label, optimizer.kind, changed))
    return replaced, followed


def _edited(
    optimizer: OptimizerState, owners: Sequence[Owner], seed: int
) -> tuple[dict[TreePath, Any], dict[TreePath, Any]]:
    """The new entries of one optimizer, and its groups with names where they had none."""
    try:
        found = _readings(optimizer, owners)
    except CheckpointError:
        if optimizer.state:
            raise
        return {}, {}  # nothing is kept yet, so nothing can be wrong
    owner, matched = found[0]
    replaced: dict[TreePath, Any] = {}
    for identity, entries in optimizer.state.items():
        edits = [(o.edits.get(names[identity]) if identity in names else None) for o, names in found]
        if not all(_same(edits[0], other, optimizer) for other in edits[1:]):
            _ambiguous(optimizer, found, identity)
        if edits[0] is not None and entries:
            name, where = matched[identity], (*optimizer.path, "state", identity)
            for key, value in _entries(optimizer, entries, edits[0], name, functools.partial(owner.read, name), seed):
                replaced.update({(*where, key): value})
    return replaced, _named_groups(optimizer, found)


def _ambiguous(
    optimizer: OptimizerState, found: Sequence[tuple[Owner, Mapping[ParameterId, str]]], identity: ParameterId
) -> None:
    places = [".".join([*map(str, o.path), o.prefix + names.get(identity, "none")]) for o, names in found]
    raise CheckpointError(
        f"cannot tell which parameters the optimizer state at {optimizer.label} belongs to: parameter {identity} "
        f"can be {' or '.join(dict.fromkeys(places))}; pass --drop-optimizer to leave it out"
    )


def _entries(
    optimizer: OptimizerState,
    entries: Mapping[str, Any],
    edit: TensorEdit,
    name: str,
    parameter: Callable[[], torch.Tensor],
    seed: int,
) -> Iterator[tuple[str, DeferredTensor]]:
    """One parameter's entries that change. Raises CheckpointError."""
    if optimizer.kind == "other":
        raise CheckpointError(
            f"the optimizer state at {optimizer.label} keeps {why_unknown(optimizer.state, optimizer.groups)}, and "
            f"{name} changes; pass --drop-optimizer to leave the optimizer out"
        )
    for key, moment in optimizer.family.items():
        value = entries.get(key)
        if value is None:  # (SGD has no momentum before its first step)
            continue
        if tuple(value.shape) != edit.before or not value.is_floating_point():
            raise CheckpointError(
                f"the optimizer state at {optimizer.label} keeps {key!r} of {name} as {value.dtype} of shape "
                f"{list(value.shape)}, not as numbers of the parameter's shape {list(edit.before)}, and cannot be "
                "changed; pass --drop-optimizer to leave the optimizer out"
            )
        make = functools.partial(edit_moment, value, edit, moment.power, size=moment.size, fresh=moment.fresh)
        if moment.average:
            make = functools.partial(edit_average, value, edit, seed, parameter)
        yield key, DeferredTensor(make)


# -- whose it is ------------------------------------------------------------------------------------


def _readings(optimizer: OptimizerState, owners: Sequence[Owner]) -> list[tuple[Owner, dict[ParameterId, str]]]:
    """All that the ids may mean, the most likely first. Raises CheckpointError where there is nothing."""
    fits, why = _fits(optimizer, owners)
    if not fits and len(owners) > 1:
        joint = (
            functools.reduce(Owner.joined, chosen)
            for count in range(2, min(len(owners), _MOST_JOINT) + 1)
            for chosen in itertools.permutations(owners[:_MOST_JOINT], count)
        )
        # (Sizes alone would pair them in more ways; only the order of the one and then the other is taken.)
        fits = [(owner, names) for owner, names in _fits(optimizer, joint)[0] if _ordered(owner, names)]
    if not fits:
        assert why is not None
        raise why
    best = max(_evidence(optimizer, owner, names) for owner, names in fits)
    return [(owner, names) for owner, names in fits if _evidence(optimizer, owner, names) == best]


def _ordered(owner: Owner, names: Mapping[ParameterId, str]) -> bool:
    place = {name: number for number, name in enumerate(owner.infos)}
    return all(place[one] < place[other] for one, other in itertools.pairwise(names.values()))


def _fits(
    optimizer: OptimizerState, owners: Any
) -> tuple[list[tuple[Owner, dict[ParameterId, str]]], CheckpointError | None]:
    """Every reading for every owner; else why it is not the first one's."""
    found, why = [], None
    for owner in owners:
        try:
            found += [(owner, names) for names in owner.readings(optimizer)]
        except CheckpointError as error:
            why = why or error
    return found, why


def _evidence(optimizer: OptimizerState, owner: Owner, names: Mapping[ParameterId, str]) -> tuple[int, int, bool]:
    """How much the places in the file say that an optimizer is an owner's, and whether it has all its tensors."""
    return *closeness(optimizer.path, owner.path), len(names) == len(owner.infos)


def closeness(optimizer: TreePath, state_dict: TreePath) -> tuple[int, int]:
    """How near an optimizer lies to a state dict in a file: the keys that lead to both, the words that both share."""
    pairs = zip(optimizer[:-1], state_dict, strict=False)
    together = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return together, len(_words(optimizer) & _words(state_dict))


def _words(path: TreePath) -> set[str]:
    found = re.findall(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+", ".".join(map(str, path)))
    return {word.lower() for word in found} - _GENERIC


def _same(one: TensorEdit | None, other: TensorEdit | None, optimizer: OptimizerState) -> bool:
    """Whether two edits do the same to moments."""
    if one is None or other is None or one is other:
        return one is other
    if (one.before, one.after, one.gain) != (other.before, other.after, other.gain) or len(one.axes) != len(other.axes):
        return False
    if any(moment.average for moment in optimizer.family.values()) and one.name != other.name:
        return False
    return all(
        a.axis == b.axis
        and np.array_equal(a.index, b.index)
        and np.array_equal(a.scale, b.scale)
        and np.array_equal(a.gain, b.gain)
        and len(a.pooled) == len(b.pooled)
        and all(
            np.array_equal(getattr(p, part), getattr(q, part))
            for p, q in zip(a.pooled, b.pooled, strict=True)
            for part in ("gone", "kept", "factor")
        )
        for a, b in zip(one.axes, other.axes, strict=True)
    )


# -- names -------------------------------------------------------------------------------------------


def _named_groups(
    optimizer: OptimizerState, found: Sequence[tuple[Owner, Mapping[ParameterId, str]]]
) -> dict[TreePath, Any]:
    """The groups with `param_names`, where they had none and nothing else than one reading is possible."""
    owner, matched = found[0]
    certain = len(found) == 1 and all(optimizer.state.get(identity) for identity in optimizer.ids)
    if not certain or optimizer.named or not owner.edits or set(matched) != set(optimizer.ids):
        return {}
    if any("param_names" in group for group in optimizer.groups) or any(isinstance(i, str) for i in optimizer.ids):
        return {}
    return {
        (*optimizer.path, "param_groups", number): {
            **group,
            "param_names": [owner.prefix + matched[identity] for identity in group["params"]],
        }
        for number, group in enumerate(optimizer.groups)
    }


def owner_of(path: TreePath, node: Mapping[str, Any], edits: Mapping[str, TensorEdit]) -> Owner:
    """A state dict by the names that it has in the file. edits: by those names."""
    from netgrow_cli.checkpoint.dtypes import name_of

    values = {key: value for key, value in node.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    prefix = common_prefix(list(values))
    infos = {
        key[len(prefix) :]: TensorInfo(key[len(prefix) :], tuple(value.shape), name_of(value.dtype) or "")
        for key, value in values.items()
    }
    cut = {key[len(prefix) :]: edit for key, edit in edits.items()}
    return Owner(path, infos, cut, lambda name: values[prefix + name].detach(), prefix)
