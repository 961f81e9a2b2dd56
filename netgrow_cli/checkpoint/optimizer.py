"""Optimizer states in a training checkpoint, and which parameter each entry belongs to.

Torch numbers parameters in the order in which the optimizer was given them. Only newer optimizers, and only
those made from `named_parameters()`, also keep names; for the others the sizes of the entries must tell.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from netgrow_cli.checkpoint.dtypes import is_float
from netgrow_cli.checkpoint.names import is_buffer, strip_wrappers
from netgrow_cli.checkpoint.state_dicts import TreePath, is_optimizer
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import CheckpointError

ParameterId = int | str
Shape = tuple[int, ...]

_ADAM = {"exp_avg", "exp_avg_sq"}
_ADAM_MORE = {"max_exp_avg_sq"}
_SGD = {"momentum_buffer"}


@dataclasses.dataclass(frozen=True)
class OptimizerState:
    """The state dict of one optimizer.

    path: where it lies in the checkpoint's tree.
    kind: "adam" (AdamW, AMSGrad too), "sgd" or "other", by the entries it keeps.
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
    def label(self) -> str:
        """Where it lies, for messages."""
        return ".".join(map(str, self.path)) or "the file itself"


def find_optimizers(tree: Any) -> list[OptimizerState]:
    """Every optimizer state in the tree of a torch checkpoint; none for None (safetensors)."""
    return [
        OptimizerState(path, _kind(node["state"], node["param_groups"]), node["state"], node["param_groups"])
        for path, node in _optimizers(tree, ())
    ]


def moments(entries: Mapping[str, Any], shape: Shape) -> dict[str, torch.Tensor]:
    """Of one parameter's entries, those that have a number for each of its numbers; `step` has none."""
    return {
        name: value
        for name, value in entries.items()
        if name != "step" and isinstance(value, torch.Tensor) and tuple(value.shape) == shape
    }


def match_parameters(optimizer: OptimizerState, tensors: Mapping[str, TensorInfo]) -> dict[ParameterId, str]:
    """Which tensor each parameter id is; ids that keep no state (frozen parameters) may be missing.

    By names where the optimizer has them. Else by sizes: all parameters in the state dict's order; else each
    size on its own, where as many tensors as ids have it and its ids are in one group, whose order then is
    the state dict's. What remains ambiguous is an error, never a guess.
    """
    if any(isinstance(identity, str) for identity in optimizer.ids):
        return _by_name(optimizer, {identity: str(identity) for identity in optimizer.ids}, tensors)
    if optimizer.groups and all("param_names" in group for group in optimizer.groups):
        names = [name for group in optimizer.groups for name in group["param_names"]]
        return _by_name(optimizer, dict(zip(optimizer.ids, names, strict=True)), tensors)
    parameters = {name: info.shape for name, info in tensors.items() if _may_be_parameter(info)}
    shapes = {identity: _shape(optimizer.state.get(identity)) for identity in optimizer.ids}
    if len(shapes) == len(parameters) and all(
        found is None or found == expected for found, expected in zip(shapes.values(), parameters.values(), strict=True)
    ):
        return dict(zip(shapes, parameters, strict=True))
    return _by_size(optimizer, shapes, parameters)


def _optimizers(node: Any, path: TreePath) -> Iterator[tuple[TreePath, Mapping[str, Any]]]:
    if is_optimizer(node):
        if all(isinstance(group, dict) and "params" in group for group in node["param_groups"]):
            yield path, node
    elif isinstance(node, (dict, list, tuple)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from _optimizers(value, (*path, key))


def _kind(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    kept = {
        name
        for entries in state.values()
        if isinstance(entries, dict)
        for name, value in entries.items()
        if isinstance(value, torch.Tensor) and name != "step"
    }
    if kept >= _ADAM and kept <= _ADAM | _ADAM_MORE:
        return "adam"
    if kept == _SGD:
        return "sgd"
    if not kept and groups:  # before the first step, or without momentum
        return "adam" if "betas" in groups[0] else "sgd" if "nesterov" in groups[0] else "other"
    return "other"


def _may_be_parameter(info: TensorInfo) -> bool:
    return is_float(info.dtype) and info.tied_to is None and not is_buffer(info.name)


def _shape(entries: Any) -> Shape | None:
    """The parameter's shape as its entries tell it; None if they do not (no state, factored moments)."""
    if not isinstance(entries, dict):
        return None
    found = {
        tuple(value.shape) for name, value in entries.items() if isinstance(value, torch.Tensor) and name != "step"
    }
    return found.pop() if len(found) == 1 else None


def _by_name(
    optimizer: OptimizerState, names: Mapping[ParameterId, str], tensors: Mapping[str, TensorInfo]
) -> dict[ParameterId, str]:
    matched: dict[ParameterId, str] = {}
    for identity, name in names.items():
        found = name if name in tensors else strip_wrappers(name)
        shape = _shape(optimizer.state.get(identity))
        if found not in tensors:
            raise _ambiguous(optimizer, f"it has a parameter {name!r}, and the model has no such tensor")
        if shape is not None and shape != tensors[found].shape:
            there = f"{list(tensors[found].shape)} in the model"
            raise _ambiguous(optimizer, f"its state of {name!r} has the shape {list(shape)}, and it is {there}")
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
            raise _ambiguous(optimizer, f"the state of parameter {identity} does not tell its shape")
    group_of = {identity: number for number, group in enumerate(optimizer.groups) for identity in group["params"]}
    matched: dict[ParameterId, str] = {}
    for shape, ids in ids_of.items():
        names = names_of[shape]
        if len(names) != len(ids):
            raise _ambiguous(optimizer, f"{_count(len(ids))} of shape {list(shape)}, the model has {_listing(names)}")
        if len({group_of[identity] for identity in ids}) > 1:
            what = f"{_count(len(ids))} of shape {list(shape)} in several groups"
            raise _ambiguous(optimizer, f"{what}, which can be {_listing(names)} in any order")
        matched.update(zip(ids, names, strict=True))
    return {identity: matched[identity] for identity in shapes if identity in matched}


def _count(count: int) -> str:
    return f"it has {count} parameter{'s' if count > 1 else ''}"


def _listing(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _ambiguous(optimizer: OptimizerState, problem: str) -> CheckpointError:
    return CheckpointError(
        f"cannot tell which parameters the optimizer state at {optimizer.label} belongs to: {problem}; "
        "pass --drop-optimizer to leave it out"
    )
