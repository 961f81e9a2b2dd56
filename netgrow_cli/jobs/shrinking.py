"""Which units prune removes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from netgrow_cli.errors import UsageError
from netgrow_cli.jobs.deadness import dead_units, removed
from netgrow_cli.jobs.job import Job, Selection, Selector
from netgrow_cli.jobs.merging import merged
from netgrow_cli.jobs.scoring import score
from netgrow_cli.surgery.select import (
    Target,
    free_widths,
    independent_widths,
    keeping_ties,
    lowest_units,
    targets,
    units_of,
)


def pruning(
    layers: Sequence[str],
    widths: Sequence[str],
    *,
    units: Sequence[int] | None = None,
    lowest: int | None = None,
    fraction: float | None = None,
    below: float | None = None,
    dead: bool = False,
    duplicates: bool = False,
    by: str = "weight",
) -> Selector:
    """Units that go: stated ones, the lowest by a score, dead ones, or duplicates (which are merged)."""
    ways = (units is not None, lowest is not None, fraction is not None, below is not None, dead, duplicates)
    if sum(ways) != 1:
        raise UsageError(
            "say which units: one of --units 3,7, --dead, --duplicates, --lowest K, --fraction F, --below C"
        )
    if fraction is not None and not 0.0 < fraction < 1.0:
        raise UsageError(f"--fraction {fraction}: a number between 0 and 1 is needed")
    if lowest is not None and lowest < 1:
        raise UsageError(f"--lowest {lowest}: at least 1 is needed")
    if below is not None and math.isnan(below):
        raise UsageError("--below nan: a number is needed")

    def select(job: Job) -> Selection:
        chosen = targets(job.topology, layers, widths)
        if dead:
            return dead_units(job, chosen)
        if duplicates:
            return merged(job, free_widths(chosen))
        if units is not None:
            picked = units_of(job.topology, chosen, units)
        else:
            picked = {}
            for target in chosen:
                picked.update(_lowest(job, target, lowest, fraction, below, by))
        return _removal(job, picked, by)

    return select


def _lowest(
    job: Job, target: Target, count: int | None, fraction: float | None, below: float | None, by: str
) -> dict[int, list[int]]:
    scored = {info.width.id: score(job, by, info.width.id) for info in independent_widths(job.topology, target)}
    total = sum(len(values) for values in scored.values())
    if below is not None:
        count = sum(int((values < below).sum()) for values in scored.values())
    elif fraction is not None:
        count = math.floor(fraction * total)
    assert count is not None
    if count >= total and below is None:
        raise UsageError(f"{target.name!r} has {total} units; at least one must stay")
    return lowest_units(scored, count)


def _removal(job: Job, picked: dict[int, list[int]], by: str) -> Selection:
    notes: list[str] = []
    counts = {width: len(units) for width, units in picked.items() if units}
    names = ", ".join(job.topology.widths[width].name for width in counts)
    for other, count in keeping_ties(job.topology, counts, sign=-1).items():
        if len(picked.get(other, ())) < count:
            ranked = np.argsort(score(job, by, other), kind="stable")
            picked[other] = sorted(int(unit) for unit in ranked[:count])
            notes.append(
                f"{job.topology.widths[other].name} is pruned too, its lowest by {by}: its size is tied to that of "
                f"{names}"
            )
    changes = tuple(removed(job, width, units) for width, units in picked.items() if units)
    if not changes:
        notes.append("no unit qualifies: the output is a copy")
    return Selection(changes, tuple(notes))
