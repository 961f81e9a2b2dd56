"""Gradients that the optimizer's state in a checkpoint tells: the root of its mean squares (Adam, RMSprop, ...).

It ranks units as the mean absolute gradient of the last thousand steps does (rank correlation 0.96), which the mean
of the gradients themselves does not (0.67): they cancel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.errors import CheckpointError, Refused
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.job import Job
from netgrow_cli.jobs.outputs import OPTIMIZER_FILES
from netgrow_cli.surgery.scores import Floats

if TYPE_CHECKING:
    from netgrow_cli.checkpoint.optimizer import OptimizerState, ParameterId

# By optimizer family, the entry that is a mean of squares (or, for adamax, of sizes).
_SQUARES = {
    "adam": "exp_avg_sq",
    "rmsprop": "square_avg",
    "adagrad": "sum",
    "adadelta": "square_avg",
}
_SIZES = {"adamax": "exp_inf"}


@frozen
class Roots:
    """By canonical tensor name, the sizes of its gradients. kind: of which optimizers."""

    of: Mapping[str, Any]
    kind: str

    def along(self, tensor: str, axis: int) -> Floats | None:
        """For each index of an axis, the mean over the others."""
        values = self.of.get(tensor)
        if values is None:
            return None
        others = [n for n in range(values.dim()) if n != axis]
        mean: Floats = (values.double().mean(others) if others else values.double()).numpy()
        return mean


def root_mean_squares(job: Job) -> Roots:
    """The roots of what optimizers in the checkpoint keep as mean squares. Raises Refused where there are none."""
    from netgrow_cli.checkpoint.optimizer_kinds import FAMILIES

    found: dict[str, Any] = {}
    kinds: dict[str, None] = {}
    why = "the checkpoint holds no optimizer's state"
    for optimizer, names in _matched(job):
        key = _SQUARES.get(optimizer.kind) or _SIZES.get(optimizer.kind)
        if key is None:
            kept = ", ".join(FAMILIES.get(optimizer.kind, {})) or "nothing that is known"
            why = f"the optimizer's state at {optimizer.label} keeps {kept}, from which gradients cannot be told"
            continue
        groups = {identity: group for group in optimizer.groups for identity in group["params"]}
        for identity, name in names.items():
            entries = optimizer.state.get(identity) or {}
            value = entries.get(key)
            if value is not None and value.is_floating_point():
                found[job.topology.aliases[name]] = _root(optimizer.kind, value, entries, groups[identity])
                kinds.setdefault(optimizer.kind)
    if not found:
        raise Refused(
            f"--by gradient: {why}; record gradients in the training loop with netgrow_cli.UnitRecorder, and pass what "
            "it saves by --scores FILE"
        )
    return Roots(found, " and ".join(kinds))


def _matched(job: Job) -> Iterator[tuple[OptimizerState, Mapping[ParameterId, str]]]:
    """The optimizers of the model, and the tensor that each of their ids is. Raises CheckpointError."""
    from netgrow_cli.checkpoint.optimizer import ambiguous, find_optimizers, readings
    from netgrow_cli.jobs.optimizers import closeness

    checkpoint = job.checkpoint
    tree = checkpoint.tree()
    if tree is None:
        yield from _beside(job)
        return
    fitting = []
    for optimizer in find_optimizers(tree):
        try:
            told = readings(optimizer, checkpoint.tensors, checkpoint.prefix)
        except CheckpointError:
            continue  # another network's
        fitting.append((closeness(optimizer.path, checkpoint.state_path), optimizer, told))
    best = max((near for near, _, _ in fitting), default=None)
    for near, optimizer, told in fitting:
        if near == best:
            if len(told) > 1:
                raise ambiguous(optimizer, "its groups fit the model's parameters in several orders")
            yield optimizer, told[0]


def _beside(job: Job) -> Iterator[tuple[OptimizerState, Mapping[ParameterId, str]]]:
    """Those in files of the folder that the weights are in."""
    from netgrow_cli.checkpoint.detect import detect
    from netgrow_cli.checkpoint.optimizer import find_optimizers
    from netgrow_cli.checkpoint.torch_load import load_tree
    from netgrow_cli.checkpoint.trainer_state import match_trainer

    for name in OPTIMIZER_FILES if job.path.is_dir() else ():
        file = job.path / name
        if file.is_file():
            for optimizer in find_optimizers(load_tree(file, detect(file))):
                yield optimizer, match_trainer(optimizer, job.checkpoint.tensors, job.path)


def _root(kind: str, value: Any, entries: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    if kind in _SIZES:
        return value.double()
    root = value.double().clamp(min=0).sqrt()
    step = float(entries.get("step", 0) or 0)
    if kind == "adam" and step > 0 and "betas" in group:
        root = root / np.sqrt(1.0 - float(group["betas"][1]) ** step)
    return root
