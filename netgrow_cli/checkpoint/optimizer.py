"""Optimizer states in a training checkpoint, and which parameter each entry belongs to.

Torch numbers parameters in the order in which the optimizer was given them. Only newer optimizers, and only
those made from `named_parameters()`, also keep names; for the others the sizes of the entries must tell.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from netgrow_cli.checkpoint.dtypes import is_float
from netgrow_cli.checkpoint.names import is_buffer, strip_wrappers
from netgrow_cli.checkpoint.optimizer_kinds import FAMILIES, FLAT, Moment, kind_of
from netgrow_cli.checkpoint.state_dicts import TreePath, is_optimizer
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import CheckpointError
from netgrow_cli.frozen import frozen

ParameterId = int | str
Shape = tuple[int, ...]

_ALL_ORDERS = 5


@frozen
class OptimizerState:
    """The state dict of one optimizer.

    path: where it lies in the checkpoint's tree.
    kind: its family in `optimizer_kinds` ("adam" for AdamW, AMSGrad, ... too) or "other".
    state: by parameter id, the entries; tensors of the parameter's shape are its moments.
    groups: the parameter groups; "params" lists ids in the order that numbers them.
    """

    path: TreePath
    kind: str
    state: Mapping[ParameterId, Mapping[str, Any]]
    groups: Sequence[Mapping[str, Any]]

    @property
    def ids(self) -> list[ParameterId]:
        """All parameter ids in the order of the groups."""
        return [identity for group in self.groups for identity in group["params"]]

    @property
    def named(self) -> bool:
        """Whether the groups keep the parameters' names."""
        return bool(self.groups) and all("param_names" in group for group in self.groups)

    @property
    def family(self) -> Mapping[str, Moment]:
        """How its entries follow; nothing for one that is not known."""
        return FAMILIES.get(self.kind, {})

    @property
    def label(self) -> str:
        """Where it lies, for messages."""
        return ".".join(map(str, self.path)) or "the file itself"


def find_optimizers(tree: Any) -> list[OptimizerState]:
    """Every optimizer state in the tree of a torch checkpoint; none for None (safetensors)."""
    return [
        OptimizerState(path, kind_of(node["state"], node["param_groups"]), node["state"], node["param_groups"])
        for path, node in _optimizers(tree, ())
    ]


def find_flat(tree: Any) -> dict[TreePath, str]:
    """By path, what holds parameters or moments in a form of its own (Apex, Megatron, DeepSpeed), and what it is."""
    return dict(_flat(tree, ()))


def moments(entries: Mapping[str, Any], shape: Shape) -> dict[str, torch.Tensor]:
    """Of one parameter's entries, those that have a number for each of its numbers; `step` has none."""
    return {
        name: value
        for name, value in entries.items()
        if name != "step" and isinstance(value, torch.Tensor) and tuple(value.shape) == shape
    }


def match_parameters(
    optimizer: OptimizerState, tensors: Mapping[str, TensorInfo], prefix: str = ""
) -> dict[ParameterId, str]:
    """Which tensor each parameter id is; ids that keep no state (frozen parameters) may be missing.

    By names where the optimizer has them (prefix: what was taken off those of the tensors). Else by sizes: all
    parameters in the state dict's order; else each size on its own, where as many tensors as ids have it and its ids
    are in one group, whose order then is the state dict's. What remains ambiguous is an error, never a guess.
    """
    if any(isinstance(identity, str) for identity in optimizer.ids):
        return _by_name(optimizer, {identity: str(identity) for identity in optimizer.ids}, tensors, prefix)
    if optimizer.named:
        names = [name for group in optimizer.groups for name in group["param_names"]]
        return _by_name(optimizer, dict(zip(optimizer.ids, names, strict=True)), tensors, prefix)
    parameters = {name: info.shape for name, info in tensors.items() if may_be_parameter(info)}
    shapes = shapes_of(optimizer)
    if _in_order(shapes.values(), parameters.values()):
        return dict(zip(shapes, parameters, strict=True))
    return _by_size(optimizer, shapes, parameters)


def readings(
    optimizer: OptimizerState, tensors: Mapping[str, TensorInfo], prefix: str = ""
) -> list[dict[ParameterId, str]]:
    """All that an optimizer's ids may mean: `match_parameters`, and with groups in another order where that fits too.

    Nothing says that groups without names are in the model's order; two of the same sizes may be either way round.
    """
    first = match_parameters(optimizer, tensors, prefix)
    listed = [list(group["params"]) for group in optimizer.groups if group["params"]]
    parameters = {name: info.shape for name, info in tensors.items() if may_be_parameter(info)}
    shapes = shapes_of(optimizer)
    named = optimizer.named or any(isinstance(identity, str) for identity in optimizer.ids)
    if named or len(listed) < 2 or list(first.items()) != list(zip(shapes, parameters, strict=False)):
        return [first]
    found = [first]
    for order in _orders(listed, shapes):
        ids = [identity for group in order for identity in group]
        if _in_order([shapes[identity] for identity in ids], parameters.values()):
            found.append(dict(zip(ids, parameters, strict=True)))
    return found


def _orders(
    listed: Sequence[list[ParameterId]], shapes: Mapping[ParameterId, Shape | None]
) -> Iterator[list[list[ParameterId]]]:
    """Other orders of the groups: all of few, of many those that swap two with the same sizes."""
    if len(listed) <= _ALL_ORDERS:
        yield from (list(order) for order in itertools.permutations(listed) if list(order) != listed)
        return
    same: dict[tuple[Shape | None, ...], list[int]] = defaultdict(list)
    for number, ids in enumerate(listed):
        same[tuple(shapes[identity] for identity in ids)].append(number)
    for numbers in same.values():
        for one, other in itertools.pairwise(numbers):
            order = list(listed)
            order[one], order[other] = listed[other], listed[one]
            yield order


def _optimizers(node: Any, path: TreePath) -> Iterator[tuple[TreePath, Mapping[str, Any]]]:
    if is_optimizer(node):
        if all(isinstance(group, dict) and "params" in group for group in node["param_groups"]):
            yield path, node
    elif isinstance(node, (dict, list, tuple)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from _optimizers(value, (*path, key))


def _flat(node: Any, path: TreePath) -> Iterator[tuple[TreePath, str]]:
    if isinstance(node, dict):
        known = next((FLAT[key] for key in node if isinstance(key, str) and key in FLAT), None)
        if known is not None:
            yield path, known
            return
    if isinstance(node, (dict, list, tuple)) and not is_optimizer(node):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _flat(value, (*path, key))


def may_be_parameter(info: TensorInfo) -> bool:
    """Whether an optimizer may have been given this tensor: no buffer that is known, and none a second time."""
    return is_float(info.dtype) and info.tied_to is None and not is_buffer(info.name)


def shapes_of(optimizer: OptimizerState) -> dict[ParameterId, Shape | None]:
    """By id, the parameter's shape as its entries tell it; None if they do not (no state, factored moments)."""
    return {identity: _shape(optimizer, optimizer.state.get(identity)) for identity in optimizer.ids}


def _shape(optimizer: OptimizerState, entries: Any) -> Shape | None:
    if not isinstance(entries, dict):
        return None
    tensors = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor) and name != "step"}
    found = {tuple(value.shape) for name, value in tensors.items() if name in optimizer.family}
    if not optimizer.family:
        found = {tuple(value.shape) for value in tensors.values()}
    return found.pop() if len(found) == 1 else None


def _in_order(shapes: Collection[Shape | None], expected: Collection[Shape]) -> bool:
    return len(shapes) == len(expected) and all(
        found is None or found == wanted for found, wanted in zip(shapes, expected, strict=True)
    )


def _by_name(
    optimizer: OptimizerState, names: Mapping[ParameterId, str], tensors: Mapping[str, TensorInfo], prefix: str
) -> dict[ParameterId, str]:
    matched: dict[ParameterId, str] = {}
    for identity, name in names.items():
        forms = (name, name.removeprefix(prefix), strip_wrappers(name))
        found = next((form for form in forms if form in tensors), None)
        if found is None:
            raise ambiguous(optimizer, f"it has a parameter {name!r}, and the model has no such tensor")
        shape = _shape(optimizer, optimizer.state.get(identity))
        if shape is not None and shape != tensors[found].shape:
            there = f"{list(tensors[found].shape)} in the model"
            raise ambiguous(optimizer, f"its state of {name!r} has the shape {list(shape)}, and it is {there}")
        matched[identity] = found
    return matched


def _by_size(
    optimizer: OptimizerState, shapes: Mapping[ParameterId, Shape | None], parameters: Mapping[str, Shape]
) -> dict[ParameterId, str]:
    names_of: dict[Shape, list[str]] = defaultdict(list)
    for name, shape in parameters.items():
        names_of[shape].append(name)
    ids_of: dict[Shape, list[ParameterId]] = defaultdict(list)
    for identity, known in shapes.items():
        if known is not None:
            ids_of[known].append(identity)
        elif optimizer.state.get(identity):
            raise ambiguous(optimizer, f"the state of parameter {identity} does not tell its shape")
    group_of = {identity: number for number, group in enumerate(optimizer.groups) for identity in group["params"]}
    matched: dict[ParameterId, str] = {}
    for shape, ids in ids_of.items():
        names = names_of[shape]
        if len(names) != len(ids):
            raise ambiguous(optimizer, f"{_count(len(ids))} of shape {list(shape)}, the model has {_listing(names)}")
        if len({group_of[identity] for identity in ids}) > 1:
            what = f"{_count(len(ids))} of shape {list(shape)} in several groups"
            raise ambiguous(optimizer, f"{what}, which can be {_listing(names)} in any order")
        matched.update(zip(ids, names, strict=True))
    return {identity: matched[identity] for identity in shapes if identity in matched}


def _count(count: int) -> str:
    return f"it has {count} parameter{'s' if count > 1 else ''}"


def _listing(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def ambiguous(optimizer: OptimizerState, problem: str) -> CheckpointError:
    """The error that an optimizer's parameters cannot be told, and the way out."""
    return CheckpointError(
        f"cannot tell which parameters the optimizer state at {optimizer.label} belongs to: {problem}; "
        "pass --drop-optimizer to leave it out"
    )
