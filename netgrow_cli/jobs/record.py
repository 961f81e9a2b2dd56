"""Folding back by a record: what `verify` does before it runs anything."""

from __future__ import annotations

import functools
from pathlib import Path

from netgrow_cli.checkpoint import Checkpoint
from netgrow_cli.checkpoint.source import source_of
from netgrow_cli.errors import NetgrowError
from netgrow_cli.jobs.job import Job
from netgrow_cli.proof.foldback import FoldBack, fold_back
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.surgery.record import METADATA_RECORD, changes_of, parse_record


def fold_back_record(old: Job, new: Checkpoint, path: Path) -> tuple[FoldBack | None, bool]:
    """Fold a checkpoint back by the record that goes with it, if there is one of a change of the old one.

    Also whether the change rounded in the checkpoint's dtype, which a comparison must allow for.
    """
    text = _record_text(new, path)
    if text is None:
        return None, False
    try:
        record = parse_record(text, str(path))
        changes = changes_of(record, old.topology)
        plan = make_plan(old.topology, old.checkpoint.tensors, changes, zero_units=bool(record.get("zero_units")))
    except NetgrowError:
        return None, False
    patched = record.get("patched", [])
    shapes = {name: plan.shape(old.topology, info) for name, info in old.checkpoint.tensors.items()}
    if any(name not in new.tensors or new.tensors[name].shape != shape for name, shape in shapes.items()):
        return None, False
    sources = functools.partial(source_of, old.checkpoint), functools.partial(source_of, new)
    folded = fold_back(old.topology, plan, *sources, patched)
    return folded, plan.rounds or bool(patched)


def _record_text(checkpoint: Checkpoint, path: Path) -> str | None:
    if METADATA_RECORD in checkpoint.metadata:
        return checkpoint.metadata[METADATA_RECORD]
    beside = path / "netgrow.json" if path.is_dir() else path.with_name(f"{path.name}.netgrow.json")
    return beside.read_text(encoding="utf-8") if beside.is_file() else None
