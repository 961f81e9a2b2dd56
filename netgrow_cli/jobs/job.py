"""One change of one checkpoint, from file to file: open, find the spec, plan, write, prove, publish.

What is changed is decided by a selector, a function of the opened job; commands and the Python API differ in
nothing but their selectors. No output appears under its name before it has been proven.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgrow_cli.checkpoint import Checkpoint, checkpoint_path, open_checkpoint
from netgrow_cli.checkpoint.dtypes import nbytes, total_bytes
from netgrow_cli.errors import NotEquivalent, Refused, UsageError, first_line
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.configuration import Configuration, follow, require_fit
from netgrow_cli.jobs.evidence import Evidence
from netgrow_cli.jobs.execute import Execution
from netgrow_cli.jobs.outputs import default_output, outputs_of
from netgrow_cli.jobs.proving import (
    WHOLE_PROBES,
    check_mode,
)
from netgrow_cli.jobs.training_state import TrainingState, follow_state, prove_along
from netgrow_cli.jobs.written import Proof, Written
from netgrow_cli.progress import SILENT, Progress
from netgrow_cli.proof.activity import Activity, observe
from netgrow_cli.proof.equivalence import Equivalence, check_dtype
from netgrow_cli.proof.foldback import FoldBack
from netgrow_cli.proof.learnable import Learnability, learnability
from netgrow_cli.proof.probes import Probes, data_probes, random_probes
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.folding import Folds, fold_constants
from netgrow_cli.surgery.plan import Plan, make_plan
from netgrow_cli.surgery.record import METADATA_RECORD, code_json, make_record
from netgrow_cli.surgery.rewrite import rewrite_spec
from netgrow_cli.topology.discover import METADATA_SPEC, Found, find_spec, place_of_tensors
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.solve import Topology, require_complete

if TYPE_CHECKING:
    from netgrow_cli.jobs.compensating import Compensation

HELD_OUT = 5
"""Of so many of the user's rows one is held out, where something is fitted on the others."""

DEAD_PROBES = 8192
"""Rows on which units are called dead; many, because a unit that wakes on one input in a thousand is alive."""


@frozen
class Options:
    """What all commands that compute have in common; see the command line's help."""

    spec: Path | None = None
    output: Path | None = None
    key: str | None = None
    prefix: str | None = None
    probes: int | None = None
    probe_data: Path | None = None
    seed: int = 0
    tolerance: float | None = None
    dtype: str = "float64"
    device: str = "cpu"
    activation: str = "per_unit"
    dry_run: bool = False
    force: bool = False
    verify: bool = True
    allow_drift: float | None = None
    drop_optimizer: bool = False
    also: Sequence[str] = ()
    leave: Sequence[str] = ()
    check_learnable: bool = False
    progress: Progress = SILENT
    shard_size: int | None = None
    proof: str = "auto"


@frozen
class Job:
    """An opened checkpoint with its solved topology, for selectors.

    held_out: of the user's rows, whether probes are every fifth, or all others; None for all.
    """

    path: Path
    checkpoint: Checkpoint
    found: Found
    network: Network
    topology: Topology
    options: Options
    held_out: bool | None = None

    def activity(self, widths: Sequence[int]) -> Activity:
        """What units do on probes that are not the ones the proof uses."""
        rows = self.options.probes or DEAD_PROBES
        return observe(self.network, widths, self.probes(rows, self.options.seed + 1), dtype=self.options.dtype)

    def probes(self, rows: int, seed: int) -> Probes:
        """Probes of the user's data, or random ones."""
        graph = self.network.graph
        if self.options.probe_data is not None:
            found = data_probes(graph, self.options.probe_data, self.options.probes)
            return found if self.held_out is None else found.held_out(HELD_OUT, held_out=self.held_out)
        return random_probes(graph, rows, seed)


@frozen
class Selection:
    """What a selector chose: the changes, what people should know about the choice, and the evidence for it.

    activity: what the units do, where that was found out; constants that are folded away come from it.
    compensate: whether what reads dropped units is refitted.
    """

    changes: tuple[WidthChange, ...]
    notes: tuple[str, ...] = ()
    activity: Activity | None = None
    evidence: tuple[Evidence, ...] = ()
    compensate: bool = False

    def doubtful(self) -> list[Evidence]:
        """The evidence that holds for rows that were looked at, and need not hold for others."""
        return [one for one in self.evidence if one.kind in ("probes", "data")]


Selector = Callable[[Job], Selection]


@frozen
class Report:
    """All that a change did, for `report/` and for the API."""

    command: str
    input: Path
    output: Path
    topology: Topology
    plan: Plan
    tensors: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    equivalence: Equivalence | None
    folded: FoldBack | None
    learnable: Learnability | None
    config: Configuration | None
    state: TrainingState
    compensation: Compensation | None
    origin: str
    assumed: tuple[str, ...]
    notes: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    warnings: tuple[str, ...]
    dry_run: bool
    verified: bool
    allowed_drift: float | None
    seed: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The contract's JSON object of a change, and more."""
        return {
            "command": self.command,
            "input": str(self.input),
            "output": str(self.output),
            "widths": [self._width(change) for change in self.plan.changes],
            "tensors": [{"name": n, "before": list(b), "after": list(a)} for n, b, a in self.tensors],
            "equivalence": self.equivalence.as_json() if self.equivalence else None,
            "model_code": [code_json(entry) for entry in self.plan.code],
            "config": self.config.as_json() if self.config else [],
            "config_output": str(self.config.output) if self.config and self.config.changes else None,
            "also": [one.as_json() for one in self.state.along],
            "optimizers": [one.as_json() for one in self.state.optimizers],
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "spec": self.origin,
            "dry_run": self.dry_run,
            "verified": self.verified,
            "allowed_drift": self.allowed_drift,
            "folded_back": dataclasses.asdict(self.folded) if self.folded else None,
            "learnable": self.learnable.as_json() if self.learnable else None,
            "compensation": self.compensation.as_json() if self.compensation else None,
            "assumed": list(self.assumed),
            "notes": list(self.notes),
            "evidence": [one.as_json() for one in self.evidence],
            "warnings": list(self.warnings),
        }

    def _width(self, change: WidthChange) -> dict[str, Any]:
        info = self.topology.widths[change.width]
        layers = dict.fromkeys([*info.producers, *info.per_unit, *info.consumers])
        return {
            "name": info.name,
            "before": change.before,
            "after": change.after,
            "layers": list(layers),
            "copied": {str(old): new for old, new in change.copies.items()},
            "fresh": len(change.fresh),
            "dropped": list(change.dropped),
        }


@contextlib.contextmanager
def opened(path: Path, options: Options) -> Iterator[Job]:
    """Open a checkpoint and solve its topology."""
    check_dtype(options.dtype)
    check_mode(options.proof)
    check_device(options.device)
    path = checkpoint_path(path)
    key, prefix = place_of_tensors(path, options.spec, options.key, options.prefix)
    with open_checkpoint(path, key=key, prefix=prefix, shard_size=options.shard_size) as checkpoint:
        found = find_spec(checkpoint, path, options.spec, activation=options.activation)
        network = Network.of(found.graph(checkpoint), checkpoint, options.device, options.progress)
        topology = network.solved()
        if found.shipped is not None:
            require_fit(found.spec, topology, path)
        yield Job(path, checkpoint, found, network, topology, options)


def change(path: Path, command: str, select: Selector, options: Options) -> Report:
    """Carry out one change. Raises NetgrowError; then nothing was written."""
    began = time.perf_counter()
    with opened(path, options) as job:
        path = job.path
        require_complete(job.topology)
        output = options.output or default_output(path, command)
        outputs = outputs_of(job.checkpoint, path, output, force=options.force, drop_optimizer=options.drop_optimizer)
        if not options.dry_run:
            outputs.check()
        selection = select(job)
        folds, plan = _plan(job, selection)
        if plan.lossy and options.allow_drift is None:
            raise Refused(f"{plan.lossy[0]}; `--allow-drift X` accepts a relative drift of X")
        judge, compensation = job, None
        if selection.compensate:
            from netgrow_cli.jobs.compensating import compensated

            judge, folds, compensation = compensated(job, plan, folds)
        state = follow_state(job, plan, folds, lambda other: _folds_of(job, other, selection, plan), outputs.optimizers)
        config = follow(job.found.spec, job.topology, plan, path, output)
        report = _Draft(command, path, output, judge, selection, plan, folds, state, config, compensation)
        report = dataclasses.replace(report, beside=outputs.warnings)
        if options.dry_run:
            return report.finish(began)
        with outputs.staged(config, _size(job, plan)) as staged:
            text = rewrite_spec(job.found.spec, job.network.graph, plan)
            record = make_record(job.topology, plan, command, path.name, options.seed, folds.patches)
            if compensation is not None:
                record["compensation"] = compensation.recorded()
            if state.along:
                record["also"] = [one.sibling.label for one in state.along]
            written = Written(judge, plan, folds, staged.paths[0], text, output)
            with written.proof() if options.verify else contextlib.nullcontext() as proof:
                _write(report, staged.paths, text, record)
                if proof is not None:
                    report = _prove(report, written, proof)
            staged.commit()
        return report.finish(began)


def _size(job: Job, plan: Plan) -> int:
    """Bytes of all tensors after a plan."""
    once = job.checkpoint.format == "torch"  # other formats hold tied tensors under each name
    infos = [info for info in job.checkpoint.tensors.values() if info.tied_to is None or not once]
    return sum(nbytes(info.dtype, plan.shape(job.topology, info)) for info in infos)


@frozen
class _Draft:
    """A report in the making."""

    command: str
    path: Path
    output: Path
    job: Job
    selection: Selection
    plan: Plan
    folds: Folds
    state: TrainingState
    config: Configuration | None = None
    compensation: Compensation | None = None
    equivalence: Equivalence | None = None
    folded: FoldBack | None = None
    learnable: Learnability | None = None
    beside: tuple[str, ...] = ()

    def finish(self, began: float) -> Report:
        topology, plan, options = self.job.topology, self.plan, self.job.options
        infos = self.job.checkpoint.tensors
        shapes = [(info.name, info.shape, plan.shape(topology, info)) for info in infos.values()]
        edited = {name for name in infos if topology.aliases[name] in plan.edits}
        return Report(
            command=self.command,
            input=self.path,
            output=self.output,
            topology=topology,
            plan=plan,
            tensors=tuple((name, before, after) for name, before, after in shapes if name in edited),
            equivalence=self.equivalence,
            folded=self.folded,
            learnable=self.learnable,
            config=self.config,
            state=self.state,
            compensation=self.compensation,
            origin=self.job.found.origin,
            assumed=self.job.found.assumed,
            notes=self.selection.notes,
            evidence=self.selection.evidence,
            warnings=self._warnings(),
            dry_run=options.dry_run,
            verified=self.equivalence is not None,
            allowed_drift=options.allow_drift,
            seed=options.seed,
            seconds=time.perf_counter() - began,
        )

    def _warnings(self) -> tuple[str, ...]:
        options, found = self.job.options, []
        if not options.verify and not options.dry_run:
            found.append("NOT VERIFIED (--no-verify): nothing was compared; run `netgrow verify` on the two files")
        found.extend(self.state.warnings)
        found.extend(self.beside)
        found.extend(self.config.warnings if self.config else ())
        found.extend(self.folds.inexact)
        found.extend(self.compensation.warnings() if self.compensation else ())
        found.extend(f"lossy: {why}" for why in self.plan.lossy)
        found.extend(f"{why}: the result does not load into it" for why in self.plan.torn[:4])
        if self.equivalence is not None and self.equivalence.constant:
            found.append("the outputs are the same on all probes, so that the probes show little; pass --probe-data")
        if self.plan.changes:
            found.extend(self._doubts())
        if any(c.copies and c.noise == 0.0 for c in self.plan.changes):
            found.append("without noise copies stay twins under training; leave --noise at its default")
        if self.learnable is not None and not self.learnable.good:
            found.append(_learnability_text(self.learnable))
        return tuple(found)

    def _doubts(self) -> Iterator[str]:
        """What the choice of units stands on that other inputs may show to be otherwise."""
        dead = self.selection.activity is not None
        for one in self.selection.doubtful():
            if not one.random and self.equivalence is not None:
                what = f"dead means dead {one.text()}" if dead else f"units were chosen {one.text()}"
                yield f"{what}; the proof ran on the same rows, and other inputs may wake a unit"
            elif one.random:
                proven = (
                    ", or only what is dead for every input: --proven"
                    if self.command in ("prune", "recycle") and dead
                    else ""
                )
                what = "what is dead there need not be dead on data" if dead else "on data they may do otherwise"
                yield f"units were chosen {one.text()}; {what}: pass --probe-data FILE{proven}"


def _learnability_text(found: Learnability) -> str:
    parts = [f"{name} unit {unit} gets no gradient" for name, unit in found.stuck[:3]]
    parts += [f"{name} units {one} and {other} stay alike" for name, one, other in found.twins[:3]]
    more = len(found.stuck) + len(found.twins) - len(parts)
    return "not learnable: " + "; ".join(parts) + (f"; and {more} more" if more else "")


def _plan(job: Job, selection: Selection) -> tuple[Folds, Plan]:
    """The plan; where units are dropped, with their constants folded into what reads them."""
    changes = selection.changes
    dropping = [c for c in changes if c.kind in ("prune", "recycle") and c.dropped]
    known = not any(node.op == "per_unit" for node in job.network.graph.nodes)
    if dropping and not known and job.options.verify:
        raise Refused(
            "what pruning changes cannot be told: the spec was drafted from names and shapes and does not know the "
            "functions between the layers; name them (--activation relu, or a spec with --spec)"
        )
    folds, zero_units = _folds(job, job.network, selection, selection.activity)
    return folds, make_plan(job.topology, job.checkpoint.tensors, changes, zero_units=zero_units)


def _folds(job: Job, network: Network, selection: Selection, activity: Activity | None) -> tuple[Folds, bool]:
    """What units that are dropped leave behind in a network, and whether all of them are zero."""
    dropping = [c for c in selection.changes if c.kind in ("prune", "recycle") and c.dropped]
    if not dropping or any(node.op == "per_unit" for node in network.graph.nodes):
        return Folds({}, ()), False
    found = activity or dataclasses.replace(job, network=network).activity([c.width for c in dropping])
    folds = fold_constants(network, found, selection.changes)
    return folds, all(set(c.dropped) <= set(found.silent(c.width)) for c in dropping)


def _folds_of(job: Job, network: Network, selection: Selection, plan: Plan) -> Folds:
    """What units that are dropped leave behind in a network that goes along, refitted as the model is."""
    folds, _ = _folds(job, network, selection, None)
    if not selection.compensate or job.options.dry_run:
        return folds
    from netgrow_cli.jobs.compensating import repaired

    return repaired(job, network, plan, folds).folds


def _write(report: _Draft, paths: Sequence[Path], spec_text: str, record: Mapping[str, Any]) -> None:
    job = report.job
    progress = job.options.progress
    work = Execution(
        job.checkpoint, job.topology, report.plan, report.folds.patches, job.options.seed, progress.advance
    )
    record_text = json.dumps(record)
    metadata = {METADATA_SPEC: spec_text, METADATA_RECORD: record_text} if len(paths) == 1 else None
    writer = job.checkpoint.writer(paths[0], work.infos(), metadata=metadata, replace=report.state.replaced)
    progress.stage("writing", total_bytes(work.infos()))
    work.write(writer)
    writer.finish()
    for path, text in zip(paths[1:], (spec_text, record_text + "\n"), strict=False):
        path.write_text(text, encoding="utf-8")
    for file in report.state.files:
        file.write(paths[0] / file.name)


def _prove(report: _Draft, written: Written, proof: Proof) -> _Draft:
    """Fold back what was written, and compare. Raises NotEquivalent."""
    job, options = report.job, report.job.options
    folded, equivalence = proof.results()
    _accept(equivalence, options, report)
    report = dataclasses.replace(report, equivalence=equivalence, folded=folded)
    if not (options.check_learnable or report.state.along):
        return report
    learnable = None
    with written.reopened() as (new, changed):
        if options.check_learnable:
            probes = job.probes(options.probes or WHOLE_PROBES, options.seed)
            learnable = learnability(job.topology, report.plan, new, probes, seed=options.seed)
        state = dataclasses.replace(report.state, along=prove_along(job, report.plan, report.state, changed, new))
    return dataclasses.replace(report, learnable=learnable, state=state)


def check_device(name: str) -> None:
    """Raises UsageError for a device that cannot compute here."""
    if name == "cpu":  # which needs no torch to be known
        return
    import torch

    try:
        torch.zeros(1, device=name).sum().item()
    except Exception as error:  # each kind of device fails in its own way
        raise UsageError(f"--device {name}: it cannot be used here ({first_line(error)}); cpu always can") from None


_LOSSY = {
    "prune": "live units were pruned",
    "recycle": "live units were recycled",
    "merge": "units that are not quite alike were merged",
}
"""What may be behind a difference, by the kind of a change."""


def accepts(equivalence: Equivalence, options: Options) -> bool:
    """Whether a difference is within the tolerance, or within the drift that is allowed."""
    drift = options.allow_drift
    return equivalence.equal or (drift is not None and equivalence.max_rel <= drift)


def _accept(equivalence: Equivalence, options: Options, report: _Draft) -> None:
    if accepts(equivalence, options):
        return
    drift = options.allow_drift
    lossy = next((_LOSSY[change.kind] for change in report.plan.changes if change.kind in _LOSSY), None)
    without = report.compensation.before if report.compensation else None
    if drift is not None:
        hint = f"more than --allow-drift {drift:g}"
    elif lossy is not None:
        hint = f"{lossy}; `--allow-drift X` accepts a relative drift of X"
    else:
        hint = "run `netgrow check` on the input: the spec may not describe it"
    if without is not None:
        hint = f"without --compensate they would by {without.max_rel:.3g}; {hint}"
    raise NotEquivalent(
        f"not equivalent: outputs{_of(equivalence)} differ by {equivalence.max_rel:.3g} of their size (tolerance "
        f"{equivalence.tolerance:g}, {equivalence.probes} {equivalence.origin} probes); {hint}; nothing was written"
    )


def _of(equivalence: Equivalence) -> str:
    return f" of {equivalence.where}" if equivalence.where else ""
