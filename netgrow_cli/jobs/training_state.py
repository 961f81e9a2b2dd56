"""What else of a training checkpoint changes with the model: averages of its weights, optimizers.

Averages and target networks get the same edits, the same units and the same fresh values; each is proven by folding
back and by running it, old against new. docs/training.md has the rule by which state dicts go along.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from netgrow_cli.checkpoint.source import Source, tensor_source
from netgrow_cli.errors import CheckpointError, NotEquivalent, UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.equivalence import Equivalence, compare
from netgrow_cli.proof.foldback import FoldBack, fold_back
from netgrow_cli.surgery.folding import Folds
from netgrow_cli.surgery.moments import edit_average
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.surgery.tensor_edits import EDITABLE
from netgrow_cli.topology.network import Network

if TYPE_CHECKING:
    import torch

    from netgrow_cli.checkpoint.siblings import Sibling
    from netgrow_cli.checkpoint.types import Checkpoint
    from netgrow_cli.jobs.job import Job
    from netgrow_cli.jobs.optimizers import Followed, OptimizerFile


@frozen
class Along:
    """A state dict that changes with the model.

    folds: what the units that are dropped leave behind in it. asked: whether by `--also`, else by its name.
    """

    sibling: Sibling
    folds: Folds
    asked: bool
    equivalence: Equivalence | None = None
    folded: FoldBack | None = None

    def as_json(self) -> dict[str, Any]:
        """Its entry under `also`."""
        return {
            "key": self.sibling.label,
            "tensors": len(self.sibling.values),
            "asked": self.asked,
            "equivalence": self.equivalence.as_json() if self.equivalence else None,
            "folded_back": self.folded.whole if self.folded else None,
        }


@frozen
class TrainingState:
    """What goes along, what stays, and by path into the checkpoint's tree what takes the place of what.

    files: those of a folder that hold optimizers, with what becomes of them.
    """

    along: tuple[Along, ...] = ()
    warnings: tuple[str, ...] = ()
    replaced: Mapping[tuple[str | int, ...], Any] = dataclasses.field(default_factory=dict)
    optimizers: tuple[Followed, ...] = ()
    files: tuple[OptimizerFile, ...] = ()


def follow_state(
    job: Job, plan: Plan, folds: Folds, fold: Callable[[Network], Folds], files: Sequence[str] = ()
) -> TrainingState:
    """Decide what follows. Raises CheckpointError or UsageError where that cannot be told.

    folds: the model's own; fold: those of another network with the same changes. files: those beside the weights, in a
    folder, that hold optimizers.
    """
    options = job.options
    if job.checkpoint.tree() is None:
        for flag, given in (("--also", options.also), ("--leave", options.leave)):
            if given:
                raise UsageError(f"{flag} {given[0]}: {job.path.name} holds one state dict")
        beside = tuple(_beside(job, plan, name) for name in files)
        return TrainingState(optimizers=tuple(one for file in beside for one in file.followed), files=beside)
    from netgrow_cli.jobs.optimizers import drop_optimizers, edit_optimizers

    checkpoint = job.checkpoint
    siblings = _siblings(job, plan)
    along = [
        Along(sibling, fold(_network(job.network, sibling.values, checkpoint)), asked)
        for sibling, asked in _chosen(siblings, options.also, options.leave)
    ]
    replaced: dict[tuple[str | int, ...], Any] = {}
    for one in along:
        replaced.update(_values(job, plan, folds, one))
    followed: list[Followed] = []
    if options.drop_optimizer:
        replaced.update(drop_optimizers(checkpoint.tree()))
    else:
        entries, followed = edit_optimizers(checkpoint.tree(), _owners(job, plan, siblings, along), options.seed)
        replaced.update(entries)
    warnings = tuple(_staying(siblings, along, options.leave))
    inexact = tuple(f"{one.sibling.label}: {why}" for one in along for why in one.folds.inexact)
    return TrainingState(tuple(along), (*warnings, *inexact), replaced, tuple(followed))


def prove_along(job: Job, plan: Plan, state: TrainingState, changed: Checkpoint, new: Network) -> tuple[Along, ...]:
    """Fold each back and run it, as it was and as it was written. new: the model's. Raises NotEquivalent."""
    from netgrow_cli.jobs.job import accepts
    from netgrow_cli.jobs.proving import WHOLE_PROBES, proof_tolerance

    proven = []
    for one in state.along:
        values, written = one.sibling.values, one.sibling.read_from(changed.tree())
        before, after = _network(job.network, values, job.checkpoint), _network(new, written, changed)
        old, written_there = (functools.partial(_source, network) for network in (before, after))
        folded = fold_back(job.topology, plan, old, written_there, one.folds.patches)
        where = f"{one.sibling.label!r}, which goes along"
        if folded.differing:
            raise NotEquivalent(
                f"folding back does not give {folded.differing[0]} of {where}, back; nothing was written"
            )
        probes = job.probes(job.options.probes or WHOLE_PROBES, job.options.seed)
        rounds = plan.rounds or bool(one.folds.patches)
        asked = job.options.tolerance
        tolerance = asked if asked is not None else proof_tolerance(job, rounds, before.infos)
        try:
            found = compare(before, after, probes, dtype=job.options.dtype, tolerance=tolerance)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        if not accepts(found, job.options):
            raise NotEquivalent(
                f"not equivalent: outputs of {where}, differ by {found.max_rel:.3g} of their size (tolerance "
                f"{found.tolerance:g}); the units were chosen in the model, and are others in it; `--leave "
                f"{one.sibling.label}` leaves it as it was, `--allow-drift X` accepts a relative drift of X; nothing "
                "was written"
            )
        proven.append(dataclasses.replace(one, equivalence=found, folded=folded))
    return tuple(proven)


def _beside(job: Job, plan: Plan, name: str) -> OptimizerFile:
    """The optimizers in a file of the folder that the weights are in."""
    from netgrow_cli.checkpoint.trainer_state import match_trainer
    from netgrow_cli.jobs.optimizers import Owner, optimizer_file

    checkpoint, aliases = job.checkpoint, job.topology.aliases
    edits = {name: plan.edits[aliases[name]] for name in checkpoint.tensors if aliases.get(name) in plan.edits}
    owner = Owner(
        (),
        checkpoint.tensors,
        edits,
        checkpoint.read,
        match=lambda optimizer: match_trainer(optimizer, checkpoint.tensors, job.path),
    )
    try:
        return optimizer_file(job.path / name, [owner], job.options.seed)
    except CheckpointError as error:
        way_out = "" if "--drop-optimizer" in str(error) else "; pass --drop-optimizer to leave it out"
        raise CheckpointError(f"{error}{way_out}") from None


# -- which -----------------------------------------------------------------------------------------


def _siblings(job: Job, plan: Plan) -> list[Sibling]:
    from netgrow_cli.checkpoint.dtypes import name_of
    from netgrow_cli.checkpoint.siblings import find_siblings

    checkpoint, aliases = job.checkpoint, job.topology.aliases
    edited = [name for name in checkpoint.tensors if aliases.get(name) in plan.edits]
    found = []
    for sibling in find_siblings(
        checkpoint.tree(), job.checkpoint.state_path, checkpoint.prefix, checkpoint.tensors, edited
    ):
        dtypes = {name: name_of(sibling.values[name].dtype) for name in edited if name in sibling.values}
        odd = next((f"{name} is {dtype} there" for name, dtype in dtypes.items() if dtype not in EDITABLE), None)
        if odd is not None and sibling.relation != "other":
            sibling = dataclasses.replace(sibling, relation="other", why=odd)
        found.append(sibling)
    return found


def _chosen(siblings: Sequence[Sibling], also: Sequence[str], leave: Sequence[str]) -> Iterator[tuple[Sibling, bool]]:
    """Those that go along, and whether they were asked for. Raises UsageError."""
    by_label = {sibling.label: sibling for sibling in siblings}
    for flag, given in (("--also", also), ("--leave", leave)):
        for label in given:
            if label.rstrip(".") not in by_label:
                there = ", ".join(map(repr, by_label)) or "none"
                raise UsageError(
                    f"{flag} {label}: no other state dict there holds what changes; those that do: {there}"
                )
    asked = {label.rstrip(".") for label in also}
    for sibling in siblings:
        if sibling.label in asked:
            if sibling.relation == "other":
                raise UsageError(f"--also {sibling.label}: it is not the same network: {sibling.why}")
            yield sibling, True
        elif sibling.relation == "average" and sibling.label not in {label.rstrip(".") for label in leave}:
            yield sibling, False


def _staying(siblings: Sequence[Sibling], along: Sequence[Along], leave: Sequence[str]) -> Iterator[str]:
    going = {one.sibling.label for one in along}
    for sibling in siblings:
        if sibling.label in going or sibling.label in {label.rstrip(".") for label in leave}:
            continue
        if sibling.relation == "other":
            yield f"{sibling.label!r} in the checkpoint holds another network ({sibling.why}) and stays as it was"
        else:
            yield (
                f"{sibling.label!r} in the checkpoint holds the same names and shapes and stays as it was, in its old "
                f"shapes; if it is an average of this network, --also {sibling.label} changes the same units in it; if "
                f"it is a network of its own, change it with --key {sibling.label}; --leave {sibling.label} is silent"
            )


# -- what becomes of it --------------------------------------------------------------------------------


def _network(network: Network, values: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> Network:
    """The network with a state dict's tensors; what that does not hold (statistics, mostly) is the model's."""
    from netgrow_cli.checkpoint.dtypes import name_of

    def read(name: str) -> Any:
        return values[name].detach() if name in values else checkpoint.read(name)

    infos = {
        name: dataclasses.replace(info, dtype=name_of(values[name].dtype) or "") if name in values else info
        for name, info in network.infos.items()
    }
    return network.reading(read, infos)


def _source(network: Network, name: str) -> Source:
    return tensor_source(network.read(name), network.infos[name].dtype)


def _values(job: Job, plan: Plan, folds: Folds, one: Along) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The tensors that take the place of a state dict's; those that it shares with others stay shared."""
    import torch

    from netgrow_cli.checkpoint.torch_file import view_of
    from netgrow_cli.checkpoint.torch_writer import DeferredTensor, WrittenTensor

    made: dict[Any, DeferredTensor] = {}
    sibling = one.sibling
    for name, value in sibling.values.items():
        canonical = job.topology.aliases[name]
        edit, patch, own = plan.edits.get(canonical), one.folds.patches.get(canonical), folds.patches.get(canonical)
        if edit is None and patch is None and own is None:
            continue
        parameter = functools.partial(job.checkpoint.read, name)
        alike = patch is own or (patch is not None and own is not None and torch.equal(patch, own))
        place = (*sibling.path, sibling.keys[name])
        if alike and view_of(value) == view_of(parameter()):
            yield place, WrittenTensor(name)
        elif edit is not None or patch is not None:
            make = functools.partial(_changed, value, edit, patch, job.options.seed, parameter)
            yield place, made.setdefault((canonical, view_of(value)), DeferredTensor(make, value))


def _changed(value: torch.Tensor, edit: Any, patch: Any, seed: int, parameter: Callable[[], Any]) -> torch.Tensor:
    value = value.detach()
    if patch is not None:
        value = (value.double() + patch.double()).to(value.dtype)
    return value if edit is None else edit_average(value, edit, seed, parameter)


def _owners(job: Job, plan: Plan, siblings: Sequence[Sibling], along: Sequence[Along]) -> list[Any]:
    """State dicts that optimizers may belong to: the model's first. No optimizer belongs to an average."""
    from netgrow_cli.checkpoint.state_dicts import find_state_dicts
    from netgrow_cli.jobs.optimizers import Owner, owner_of

    checkpoint, aliases, path = job.checkpoint, job.topology.aliases, job.checkpoint.state_path
    edits = {name: plan.edits[aliases[name]] for name in checkpoint.tensors if aliases.get(name) in plan.edits}
    owners = [Owner(path, checkpoint.tensors, edits, checkpoint.read, checkpoint.prefix)]
    averages = {sibling.path for sibling in siblings if sibling.relation == "average"}
    changing: dict[tuple[str | int, ...], dict[str, Any]] = {path: {checkpoint.prefix + n: e for n, e in edits.items()}}
    for one in along:
        own = changing.setdefault(one.sibling.path, {})
        own.update({one.sibling.prefix + name: edits[name] for name in one.sibling.values if name in edits})
    for place, node in find_state_dicts(checkpoint.tree()).items():
        mixed = place == path and any(sibling.path == path for sibling in siblings)
        if mixed or (place != path and place not in averages):
            owners.append(owner_of(place, node, changing.get(place, {})))
    return owners
