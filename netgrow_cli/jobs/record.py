"""Folding back by a record: what `verify` does before it runs anything."""

from __future__ import annotations

import functools
from pathlib import Path

from netgrow_cli.checkpoint import Checkpoint
from netgrow_cli.checkpoint.dtypes import total_bytes
from netgrow_cli.checkpoint.source import source_of
from netgrow_cli.errors import NetgrowError
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.job import Job
from netgrow_cli.proof.foldback import FoldBack, fold_back
from netgrow_cli.surgery.plan import Plan, make_plan
from netgrow_cli.surgery.record import METADATA_RECORD, changes_of, parse_record


@frozen
class Recorded:
    """What a record says of two checkpoints: the plan of the change, what it patched, and what folding back gave.

    rounds: whether the change rounded in the checkpoint's dtype, which a comparison must allow for.
    """

    plan: Plan
    patched: tuple[str, ...]
    folded: FoldBack

    @property
    def rounds(self) -> bool:
        """Whether something was rounded."""
        return self.plan.rounds or bool(self.patched)


def fold_back_record(old: Job, new: Checkpoint, path: Path) -> Recorded | None:
    """Fold a checkpoint back by the record that goes with it, if there is one of a change of the old one."""
    text = _record_text(new, path)
    if text is None:
        return None
    try:
        record = parse_record(text, str(path))
        changes = changes_of(record, old.topology)
        plan = make_plan(old.topology, old.checkpoint.tensors, changes, zero_units=bool(record.get("zero_units")))
    except NetgrowError:
        return None
    patched = tuple(record.get("patched", ()))
    shapes = {name: plan.shape(old.topology, info) for name, info in old.checkpoint.tensors.items()}
    if any(name not in new.tensors or new.tensors[name].shape != shape for name, shape in shapes.items()):
        return None
    sources = functools.partial(source_of, old.checkpoint), functools.partial(source_of, new)
    progress = old.options.progress
    progress.stage("folding back", total_bytes(new.tensors.values()))
    return Recorded(plan, patched, fold_back(old.topology, plan, *sources, patched, progress.advance))


def _record_text(checkpoint: Checkpoint, path: Path) -> str | None:
    if METADATA_RECORD in checkpoint.metadata:
        return checkpoint.metadata[METADATA_RECORD]
    beside = path / "netgrow.json" if path.is_dir() else path.with_name(f"{path.name}.netgrow.json")
    return beside.read_text(encoding="utf-8") if beside.is_file() else None
