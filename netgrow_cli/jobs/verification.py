"""Two checkpoints: are they the same function? Folding back by the record first, probes second."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from netgrow_cli.checkpoint import checkpoint_path
from netgrow_cli.errors import SpecError, UsageError
from netgrow_cli.jobs.job import Job, Options, opened
from netgrow_cli.jobs.proving import WHOLE_PROBES, Question, drops_units, edited_by, proof_tolerance, shown
from netgrow_cli.jobs.record import Recorded, fold_back_record
from netgrow_cli.proof.equivalence import Equivalence
from netgrow_cli.proof.foldback import FoldBack
from netgrow_cli.proof.real_model import compare_models
from netgrow_cli.topology.discover import spec_paths
from netgrow_cli.topology.solve import require_complete


def compare_checkpoints(
    old: Path, new: Path, options: Options, model: str | None = None
) -> tuple[Equivalence, FoldBack | None]:
    """Compare by the specs, or with `model` (package.module:factory) in the real model code."""
    old, new = checkpoint_path(old), checkpoint_path(new)
    if model is not None and options.proof == "pieces":
        raise UsageError("--proof pieces: real model code is run as a whole; leave --model out, or --proof pieces")
    with (
        opened(old, dataclasses.replace(options, spec=_spec_for(old, new, options))) as first,
        opened(new, dataclasses.replace(options, spec=_spec_for(new, old, options))) as second,
    ):
        _same_inputs(first, second)
        if model is None:
            require_complete(first.topology)
            require_complete(second.topology)
        recorded = fold_back_record(first, second.checkpoint, new)
        rounds = recorded is not None and recorded.rounds
        tolerance = options.tolerance if options.tolerance is not None else proof_tolerance(first, rounds)
        if model is not None:
            specs = first.options.spec, second.options.spec
            probes = first.probes(options.probes or WHOLE_PROBES, options.seed)
            found = compare_models(model, (old, new), specs, probes, dtype=options.dtype, tolerance=tolerance)
        else:
            found = shown(_question(first, second, recorded, tolerance))
        return found, recorded.folded if recorded is not None else None


def _question(first: Job, second: Job, recorded: Recorded | None, tolerance: float) -> Question:
    """What is to be shown. Where folding back found a difference, only the whole network can tell what it means."""
    options, edited, dropped = first.options, None, False
    if recorded is not None and not recorded.folded.differing:
        edited = edited_by(
            first.topology, recorded.plan, recorded.patched, (*recorded.folded.differing, *recorded.folded.left)
        )
        dropped = drops_units(recorded.plan)
    return Question(
        old=first.network,
        new=second.network,
        probes=lambda rows: first.probes(rows, options.seed),
        edited=edited,
        dropped=dropped,
        drift=options.allow_drift,
        mode=options.proof,
        rows=options.probes,
        dtype=options.dtype,
        tolerance=tolerance,
    )


def _same_inputs(first: Job, second: Job) -> None:
    """The same probes must go into both. Raises SpecError."""
    inputs = [{given.name: given.shape[1:] for given in job.network.graph.inputs} for job in (first, second)]
    if inputs[0] != inputs[1]:
        one, other = (", ".join(f"{name} {list(shape)}" for name, shape in given.items()) for given in inputs)
        raise SpecError(
            f"the specs have different inputs, {one} ({first.found.origin}) and {other} ({second.found.origin}), so "
            "the same probes cannot go into both; give one that fits both with --spec"
        )


def _spec_for(path: Path, other: Path, options: Options) -> Path | None:
    """The stated spec where it fits this checkpoint; else its own (None), else the one beside the other.

    A spec that states ranges fits one width only: the changed checkpoint then has its own beside it. What could
    only be drafted comes last.
    """
    beside = [place for place in spec_paths(other) if place.is_file()][:1]
    tries: list[Path | None] = [*([options.spec] if options.spec else []), None, *beside]
    reasons, drafted = [], False
    for spec in tries:
        try:
            with opened(path, dataclasses.replace(options, spec=spec)) as job:
                if spec is not None or not job.found.assumed:
                    return spec
                drafted = True
        except SpecError as error:
            reasons.append(error)
    if drafted:
        return None
    raise reasons[0]
