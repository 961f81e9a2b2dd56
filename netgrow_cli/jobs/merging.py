"""Duplicates go, and the units that they stand for take over what they passed on: `prune --duplicates`."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from netgrow_cli.jobs.job import Job, Selection
from netgrow_cli.surgery import change
from netgrow_cli.surgery.duplicates import Duplicate, Likeness, as_folds, duplicate_units, read_by
from netgrow_cli.surgery.select import size_class, with_tied
from netgrow_cli.surgery.unit_rows import Folds
from netgrow_cli.topology.solve import Topology, WidthInfo

_WORDS: dict[Likeness, str] = {"equal": "bit for bit", "multiple": "times a factor", "near": "nearly"}


def merged(job: Job, infos: Sequence[WidthInfo]) -> Selection:
    """Units that stand for others are merged into them, in widths whose sizes are tied as many as in all of them.

    `--tolerance` says how far they may be off, as it says how far the outputs may.
    """
    found = _found(job, _in_order(job.topology, with_tied(job.topology, infos)))
    chosen = _evenly(job.topology, found)
    changes, notes = [], []
    for width in found:
        info = job.topology.widths[width]
        notes.append(_note(info, found[width], chosen[width], job.options.tolerance))
        if chosen[width]:
            entries = [(pair.gone, pair.kept, pair.factor) for pair in chosen[width]]
            changes.append(change.merge(width, info.size, entries))
    if not changes:
        notes.append("no duplicates: the output is a copy")
    return Selection(tuple(changes), tuple(notes))


def _found(job: Job, infos: Sequence[WidthInfo]) -> dict[int, list[Duplicate]]:
    """The duplicates of all widths. What reads units of another is searched again once these are known."""
    found: dict[int, list[Duplicate]] = {}
    folds: dict[int, Folds] = {}
    known: dict[int, set[int]] = {}
    reads = {info.width.id: read_by(job.network, info.width.id) - {info.width.id} for info in infos}
    while any(known.get(width) != reads[width] & set(folds) for width in reads):
        for width in reads:
            if known.get(width) != reads[width] & set(folds):
                known[width] = reads[width] & set(folds)
                found[width] = duplicate_units(job.network, width, job.options.tolerance, folds)
                if found[width]:
                    folds[width] = as_folds(found[width])
    return found


def _in_order(topology: Topology, infos: Sequence[WidthInfo]) -> list[WidthInfo]:
    """Widths in the order in which they are made: whether rows are the same depends on what they read."""
    order = {node.name: place for place, node in enumerate(topology.graph.nodes)}
    first = {
        info.width.id: min((order[name] for name in topology.makers.get(info.width.id, ())), default=len(order))
        for info in infos
    }
    return sorted(infos, key=lambda info: first[info.width.id])


def _evenly(topology: Topology, found: Mapping[int, Sequence[Duplicate]]) -> dict[int, list[Duplicate]]:
    """What is merged of each width, the best first; of those whose sizes are tied as many as the least has."""
    chosen = {}
    for width, pairs in found.items():
        count = min(len(found.get(other, ())) for other in size_class(topology, width))
        chosen[width] = sorted(sorted(pairs, key=lambda pair: pair.error)[:count], key=lambda pair: pair.gone)
    return chosen


def _note(info: WidthInfo, found: Sequence[Duplicate], chosen: Sequence[Duplicate], tolerance: float | None) -> str:
    kinds = collections.Counter(pair.kind for pair in found)
    said = ", ".join(f"{kinds[kind]} {word}" for kind, word in _WORDS.items() if kinds[kind])
    within = f" (within {tolerance:g} of their norm)" if kinds["near"] and tolerance is not None else ""
    note = f"{info.name}: {len(found)} of {info.size} units are copies of others"
    if said:
        note += f": {said}{within}"
    if len(chosen) < len(found):
        note += f"; {len(chosen)} are merged, as many as in all widths whose sizes are tied to it"
    return note
