"""The record of a change: what was done, as JSON that goes with the output, enough to do or check it again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from netgrow_cli.errors import CheckpointError
from netgrow_cli.surgery.change import FRESH, WidthChange
from netgrow_cli.surgery.plan import CodeChange, Plan
from netgrow_cli.topology.solve import Topology

METADATA_RECORD = "netgrow.record"
VERSION = 1


def make_record(
    topology: Topology, plan: Plan, command: str, source: str, seed: int, patched: Iterable[str]
) -> dict[str, Any]:
    """The record of a plan that was carried out."""
    return {
        "netgrow": VERSION,
        "command": command,
        "input": source,
        "seed": seed,
        "changes": [
            {
                "width": topology.widths[change.width].name,
                "kind": change.kind,
                "before": change.before,
                "after": change.after,
                "sources": _runs(change.sources),
                "noise": change.noise,
                "init": change.init,
                "absorbed": [list(entry) for entry in change.absorbed],
            }
            for change in plan.changes
        ],
        "patched": sorted(patched),
        "zero_units": plan.zero_units,
        "model_code": [code_json(entry) for entry in plan.code],
    }


def code_json(entry: CodeChange) -> dict[str, Any]:
    """One entry of `model_code`."""
    return {
        "layer": entry.layer,
        "what": entry.what,
        "before": entry.before,
        "after": entry.after,
        "source": entry.source,
        "attribute": entry.attribute,
    }


def changes_of(record: Mapping[str, Any], topology: Topology) -> list[WidthChange]:
    """The changes that a record holds, for the topology they were made on. Raises CheckpointError."""
    try:
        return _changes(record, topology)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the record is damaged ({type(error).__name__}: {error})") from None


def _changes(record: Mapping[str, Any], topology: Topology) -> list[WidthChange]:
    changes = []
    for entry in record["changes"]:
        info = topology.by_name(entry["width"])
        if info is None or info.size != entry["before"]:
            raise CheckpointError(
                f"the record speaks of a width {entry['width']!r} that the old checkpoint does not have"
            )
        changes.append(
            WidthChange(
                info.width.id,
                entry["before"],
                _unrun(entry["sources"]),
                entry["kind"],
                entry["noise"],
                entry["init"],
                tuple((int(a), int(b), float(c)) for a, b, c in entry["absorbed"]),
            )
        )
    return changes


def parse_record(text: str, where: str) -> dict[str, Any]:
    """A record from its JSON text. Raises CheckpointError."""
    try:
        record = json.loads(text)
    except ValueError:
        raise CheckpointError(f"{where}: its record is no valid JSON") from None
    if not isinstance(record, dict) or record.get("netgrow") != VERSION or "changes" not in record:
        raise CheckpointError(f"{where}: its record is not one of netgrow version {VERSION}")
    return record


def _runs(sources: Sequence[int]) -> list[list[int]]:
    """[first, count] for each run of ascending neighbours, or of fresh units."""
    index = np.asarray(sources, dtype=np.int64)
    if not len(index):
        return []
    expected = np.where(index[:-1] == FRESH, FRESH, index[:-1] + 1)
    cuts = [0, *(np.flatnonzero(index[1:] != expected) + 1).tolist(), len(index)]
    return [[int(index[first]), last - first] for first, last in itertools.pairwise(cuts)]


def _unrun(runs: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(
        itertools.chain.from_iterable(
            itertools.repeat(FRESH, count) if first == FRESH else range(first, first + count) for first, count in runs
        )
    )
