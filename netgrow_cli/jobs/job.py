"""One change of one checkpoint, from file to file: open, find the spec, plan, write, prove, publish.

What is changed is decided by a selector, a function of the opened job; commands and the Python API differ in
nothing but their selectors. No output appears under its name before it has been proven.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from netgrow_cli.checkpoint import Checkpoint, check_outputs, open_checkpoint, staged_outputs
from netgrow_cli.checkpoint.source import source_of
from netgrow_cli.errors import NotEquivalent, Refused, UsageError, first_line
from netgrow_cli.jobs.configuration import Configuration, follow, require_fit
from netgrow_cli.jobs.execute import Execution
from netgrow_cli.jobs.proving import (
    WHOLE_PROBES,
    Question,
    check_mode,
    drops_units,
    edited_by,
    shown,
)
from netgrow_cli.proof.activity import Activity, observe
from netgrow_cli.proof.equivalence import EXACT, ROUNDED, Equivalence, check_dtype, require_finite
from netgrow_cli.proof.foldback import FoldBack, fold_back
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
from netgrow_cli.topology.spec import parse_spec

DEAD_PROBES = 8192
"""Rows on which units are called dead; many, because a unit that wakes on one input in a thousand is alive."""

PAST = {
    "expand": "expanded",
    "split": "split",
    "prune": "pruned",
    "recycle": "recycled",
    "merge": "merged",
    "apply": "edited",
}


@dataclasses.dataclass(frozen=True)
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
    check_learnable: bool = False
    proof: str = "auto"


@dataclasses.dataclass(frozen=True)
class Job:
    """An opened checkpoint with its solved topology, for selectors."""

    path: Path
    checkpoint: Checkpoint
    found: Found
    network: Network
    topology: Topology
    options: Options

    def activity(self, widths: Sequence[int]) -> Activity:
        """What units do on probes that are not the ones the proof uses."""
        rows = self.options.probes or DEAD_PROBES
        return observe(self.network, widths, self.probes(rows, self.options.seed + 1), dtype=self.options.dtype)

    def probes(self, rows: int, seed: int) -> Probes:
        """Probes of the user's data, or random ones."""
        graph = self.network.graph
        if self.options.probe_data is not None:
            return data_probes(graph, self.options.probe_data, self.options.probes)
        return random_probes(graph, rows, seed)


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a selector chose: the changes, what people should know about the choice, and the evidence for it."""

    changes: tuple[WidthChange, ...]
    notes: tuple[str, ...] = ()
    activity: Activity | None = None


Selector = Callable[[Job], Selection]


@dataclasses.dataclass(frozen=True)
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
    origin: str
    assumed: tuple[str, ...]
    notes: tuple[str, ...]
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
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "spec": self.origin,
            "dry_run": self.dry_run,
            "verified": self.verified,
            "allowed_drift": self.allowed_drift,
            "folded_back": dataclasses.asdict(self.folded) if self.folded else None,
            "learnable": self.learnable.as_json() if self.learnable else None,
            "assumed": list(self.assumed),
            "notes": list(self.notes),
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
    key, prefix = place_of_tensors(path, options.spec, options.key, options.prefix)
    with open_checkpoint(path, key=key, prefix=prefix) as checkpoint:
        found = find_spec(checkpoint, path, options.spec, activation=options.activation)
        network = Network.of(found.graph(checkpoint), checkpoint, options.device)
        topology = network.solved()
        if found.shipped is not None:
            require_fit(found.spec, topology, path)
        yield Job(path, checkpoint, found, network, topology, options)


def default_output(path: Path, command: str) -> Path:
    """`ckpt.pt` becomes `ckpt.expanded.pt`, beside it."""
    return path.with_name(f"{path.stem}.{PAST[command]}{path.suffix}")


def companions(checkpoint: Checkpoint, output: Path) -> list[Path]:
    """The spec and the record beside a .pt file; a safetensors file holds them itself."""
    if checkpoint.format == "safetensors":
        return []
    return [output.with_name(f"{output.name}.netgrow.yaml"), output.with_name(f"{output.name}.netgrow.json")]


def change(path: Path, command: str, select: Selector, options: Options) -> Report:
    """Carry out one change. Raises NetgrowError; then nothing was written."""
    began = time.perf_counter()
    with opened(path, options) as job:
        require_complete(job.topology)
        output = options.output or default_output(path, command)
        _check_ending(job, output)
        targets = [output, *companions(job.checkpoint, output)]
        if not options.dry_run:
            check_outputs(targets, force=options.force, inputs=[path])
        selection = select(job)
        folds, plan = _plan(job, selection)
        if plan.lossy and options.allow_drift is None:
            raise Refused(f"{plan.lossy[0]}; `--allow-drift X` accepts a relative drift of X")
        config = follow(job.found.spec, job.topology, plan, path, output)
        report = _Draft(command, path, output, job, selection, plan, folds, config)
        if options.dry_run:
            return report.finish(began)
        more = [config.output] if config is not None and config.changes else []
        stale = config.stale if config is not None else None
        if stale is not None:
            check_outputs([stale], force=options.force)
        with staged_outputs([*targets, *more], force=options.force, inputs=[path]) as staged:
            text = rewrite_spec(job.found.spec, job.network.graph, plan)
            record = make_record(job.topology, plan, command, path.name, options.seed, folds.patches)
            _write(job, plan, folds, staged.paths[: len(targets)], text, record)
            if config is not None and config.changes:
                staged.paths[-1].write_text(config.text, encoding="utf-8")
            if options.verify:
                report = _prove(report, staged.paths[0], text, output)
            staged.commit()
        if stale is not None:
            stale.unlink(missing_ok=True)
        return report.finish(began)


@dataclasses.dataclass(frozen=True)
class _Draft:
    """A report in the making."""

    command: str
    path: Path
    output: Path
    job: Job
    selection: Selection
    plan: Plan
    folds: Folds
    config: Configuration | None = None
    equivalence: Equivalence | None = None
    folded: FoldBack | None = None
    learnable: Learnability | None = None

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
            origin=self.job.found.origin,
            assumed=self.job.found.assumed,
            notes=self.selection.notes,
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
        found.extend(_left_behind(self.job, self.plan))
        found.extend(self.config.warnings if self.config else ())
        found.extend(self.folds.inexact)
        found.extend(f"lossy: {why}" for why in self.plan.lossy)
        found.extend(f"{why}: the result does not load into it" for why in self.plan.torn[:4])
        if self.equivalence is not None and self.equivalence.constant:
            found.append("the outputs are the same on all probes, so that the probes show little; pass --probe-data")
        activity = self.selection.activity
        if activity is not None and not activity.probes.random and self.equivalence is not None:
            found.append(
                f"dead means dead on the {activity.probes.rows} rows of {activity.probes.origin}; the proof ran on the "
                "same rows, and other inputs may wake a unit"
            )
        if activity is not None and activity.probes.random and self.plan.changes:
            found.append(
                f"units were chosen on {activity.probes.rows} random probes; what is dead there need not be dead on "
                "data: pass --probe-data FILE"
            )
        if any(c.copies and c.noise == 0.0 for c in self.plan.changes):
            found.append("without noise copies stay twins under training; leave --noise at its default")
        if self.learnable is not None and not self.learnable.good:
            found.append(_learnability_text(self.learnable))
        return tuple(found)


def _left_behind(job: Job, plan: Plan) -> Iterator[str]:
    """Other state dicts of the file with the tensors that change: an average of the weights, mostly."""
    if job.checkpoint.format == "safetensors":
        return
    from netgrow_cli.checkpoint.state_dicts import find_state_dicts

    edited = [name for name in job.checkpoint.tensors if job.topology.aliases.get(name) in plan.edits]
    for path, node in find_state_dicts(job.checkpoint.tree()).items():
        place = ".".join(map(str, path))
        if place == (job.checkpoint.key or ""):
            continue
        same = next((name for name in edited if any(f".{other}".endswith(f".{name}") for other in node)), None)
        if same is not None:
            yield (
                f"{place!r} in the checkpoint holds {same} too and stays as it was, in its old shapes; change it "
                f"as well with --key {place}, or leave it behind"
            )


def _learnability_text(found: Learnability) -> str:
    parts = [f"{name} unit {unit} gets no gradient" for name, unit in found.stuck[:3]]
    parts += [f"{name} units {one} and {other} stay alike" for name, one, other in found.twins[:3]]
    more = len(found.stuck) + len(found.twins) - len(parts)
    return "not learnable: " + "; ".join(parts) + (f"; and {more} more" if more else "")


def _check_ending(job: Job, output: Path) -> None:
    """An output has its input's format; a name that says otherwise would mislead. Raises UsageError."""
    is_safetensors = job.checkpoint.format == "safetensors"
    says = {".safetensors": True, **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), False)}.get(output.suffix)
    if says is not None and says != is_safetensors and output.suffix != job.path.suffix:
        form = "safetensors" if is_safetensors else "torch"
        raise UsageError(
            f"{output}: the output has the format of {job.path.name}, {form}; name it so, and `netgrow convert` it then"
        )


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
    folds, zero_units = Folds({}, ()), False
    if dropping and known:
        activity = selection.activity or job.activity([c.width for c in dropping])
        folds = fold_constants(job.network, activity, changes)
        zero_units = all(set(c.dropped) <= set(activity.silent(c.width)) for c in dropping)
    return folds, make_plan(job.topology, job.checkpoint.tensors, changes, zero_units=zero_units)


def _write(
    job: Job, plan: Plan, folds: Folds, paths: Sequence[Path], spec_text: str, record: Mapping[str, Any]
) -> None:
    work = Execution(job.checkpoint, job.topology, plan, folds.patches, job.options.seed)
    record_text = json.dumps(record)
    metadata = {METADATA_SPEC: spec_text, METADATA_RECORD: record_text} if len(paths) == 1 else None
    writer = job.checkpoint.writer(paths[0], work.infos(), metadata=metadata, replace=_optimizer_states(job, plan))
    work.write(writer)
    writer.finish()
    for path, text in zip(paths[1:], (spec_text, record_text + "\n"), strict=False):
        path.write_text(text, encoding="utf-8")


def _optimizer_states(job: Job, plan: Plan) -> dict[tuple[str | int, ...], Any]:
    if job.checkpoint.format == "safetensors":
        return {}
    from netgrow_cli.checkpoint.optimizer import find_optimizers
    from netgrow_cli.checkpoint.torch_tree import REMOVED
    from netgrow_cli.surgery.moments import edited_state

    replaced: dict[tuple[str | int, ...], Any] = {}
    for optimizer in find_optimizers(job.checkpoint.tree()):
        if job.options.drop_optimizer:
            replaced[tuple(optimizer.path)] = REMOVED
        else:
            replaced.update(edited_state(optimizer, job.checkpoint, job.topology, plan))
    return replaced


def _prove(report: _Draft, written: Path, spec_text: str, output: Path) -> _Draft:
    """Open what was written, with its own spec solved anew, and compare. Raises NotEquivalent."""
    job, options = report.job, report.job.options
    with open_checkpoint(written, key=job.checkpoint.key, prefix=job.checkpoint.prefix or None) as changed:
        graph = parse_spec(spec_text, f"{output} (rewritten spec)").graph(changed.tensors)
        new = Network.of(graph, changed, options.device)
        folded = fold_back(
            job.topology,
            report.plan,
            functools.partial(source_of, job.checkpoint),
            functools.partial(source_of, changed),
            report.folds.patches,
        )
        if folded.differing:
            require_finite(job.network, folded.differing[0])
            raise NotEquivalent(f"folding back does not give {folded.differing[0]} back; nothing was written")
        rounds = report.plan.rounds or bool(report.folds.patches)
        tolerance = options.tolerance if options.tolerance is not None else proof_tolerance(job, rounds)
        equivalence = shown(
            Question(
                old=job.network,
                new=new,
                probes=lambda rows: job.probes(rows, options.seed),
                edited=edited_by(job.topology, report.plan, report.folds.patches, folded),
                dropped=drops_units(report.plan),
                drift=options.allow_drift,
                mode=options.proof,
                rows=options.probes,
                dtype=options.dtype,
                tolerance=tolerance,
            )
        )
        _accept(equivalence, options, report)
        learnable = None
        if options.check_learnable:
            probes = job.probes(options.probes or WHOLE_PROBES, options.seed)
            learnable = learnability(job.topology, report.plan, new, probes, seed=options.seed)
    return dataclasses.replace(report, equivalence=equivalence, folded=folded, learnable=learnable)


def check_device(name: str) -> None:
    """Raises UsageError for a device that cannot compute here."""
    if name == "cpu":  # which needs no torch to be known
        return
    import torch

    try:
        torch.zeros(1, device=name).sum().item()
    except Exception as error:  # each kind of device fails in its own way
        raise UsageError(f"--device {name}: it cannot be used here ({first_line(error)}); cpu always can") from None


def proof_tolerance(job: Job, rounds: bool) -> float:
    """The default tolerance. rounds: whether the change rounds in the checkpoint's dtype."""
    exact = EXACT[job.options.dtype]
    if not rounds:
        return exact
    dtypes = {info.dtype for info in job.checkpoint.tensors.values()}
    return max([exact, *(ROUNDED[dtype] for dtype in dtypes if dtype in ROUNDED)])


def _accept(equivalence: Equivalence, options: Options, report: _Draft) -> None:
    if equivalence.equal:
        return
    drift = options.allow_drift
    if drift is not None and equivalence.max_rel <= drift:
        return
    lossy = report.command == "prune" or bool(report.plan.lossy)
    if drift is not None:
        hint = f"more than --allow-drift {drift:g}"
    elif lossy:
        hint = "live units were pruned; `--allow-drift X` accepts a relative drift of X"
    else:
        hint = "run `netgrow check` on the input: the spec may not describe it"
    raise NotEquivalent(
        f"not equivalent: outputs{_of(equivalence)} differ by {equivalence.max_rel:.3g} of their size (tolerance "
        f"{equivalence.tolerance:g}, {equivalence.probes} {equivalence.origin} probes); {hint}; nothing was written"
    )


def _of(equivalence: Equivalence) -> str:
    return f" of {equivalence.where}" if equivalence.where else ""
