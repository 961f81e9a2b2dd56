"""Which units a command removes or replaces: prune and recycle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.jobs.growing import score
from netgrow_cli.jobs.job import Job, Selection, Selector
from netgrow_cli.surgery import change
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.duplicates import duplicate_units
from netgrow_cli.surgery.scores import Scores, weight_score
from netgrow_cli.surgery.select import (
    Target,
    free_widths,
    independent_widths,
    keeping_ties,
    lowest_units,
    size_class,
    targets,
    units_of,
    with_tied,
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
            return _dead(job, chosen)
        if duplicates:
            return _duplicates(job, chosen)
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
    changes = tuple(_prune(job, width, units) for width, units in picked.items() if units)
    if not changes:
        notes.append("no unit qualifies: the output is a copy")
    return Selection(changes, tuple(notes))


def _prune(job: Job, width: int, units: Sequence[int]) -> WidthChange:
    info = job.topology.widths[width]
    if len(units) >= info.size:
        raise Refused(f"{info.name}: that would prune all of its {info.size} units; at least one must stay")
    return change.prune(width, info.size, units)


def _dead(job: Job, chosen: Sequence[Target]) -> Selection:
    infos = with_tied(job.topology, free_widths(chosen))
    activity = job.activity([info.width.id for info in infos])
    found = {info.width.id: activity.dead(info.width.id) for info in infos}
    notes = []
    for width, units in _evenly(job, found).items():
        info = job.topology.widths[width]
        if len(found[width]) == info.size:
            notes.append(f"{info.name}: all {info.size} units are dead; one stays")
        found[width] = units
        notes.append(f"{info.name}: {len(units)} of {info.size} units dead on {activity.probes.rows} probes")
    changes = tuple(_prune(job, width, units) for width, units in found.items() if units)
    if not changes:
        notes.append("no dead units: the output is a copy")
    return Selection(changes, tuple(notes), activity)


def _evenly(job: Job, found: dict[int, list[int]]) -> dict[int, list[int]]:
    """What goes of each width, never all; widths whose sizes are tied lose the least that all of them can."""
    spare = {width: min(len(units), job.topology.widths[width].size - 1) for width, units in found.items()}
    result = {}
    for width, units in found.items():
        count = min(spare.get(other, 0) for other in size_class(job.topology, width))
        result[width] = units[len(units) - count :]
    return result


def _duplicates(job: Job, chosen: Sequence[Target]) -> Selection:
    changes, notes = [], []
    for info in free_widths(chosen):
        if len(size_class(job.topology, info.width.id)) > 1:
            raise Refused(f"{info.name}: its size is tied to another's, so its duplicates alone cannot go")
        pairs = duplicate_units(job.network, info.width.id)
        notes.append(f"{info.name}: {len(pairs)} of {info.size} units are copies of others")
        if pairs:
            changes.append(change.merge(info.width.id, info.size, [(gone, kept, 1.0) for gone, kept in pairs]))
    if not changes:
        notes.append("no duplicates: the output is a copy")
    return Selection(tuple(changes), tuple(notes))


def recycling(layers: Sequence[str], widths: Sequence[str], *, noise: float) -> Selector:
    """Dead units become copies of the live ones with the highest scores."""
    if not (math.isfinite(noise) and noise >= 0.0):
        raise UsageError(f"--noise {noise}: a number of at least 0 is needed")

    def select(job: Job) -> Selection:
        infos = free_widths(targets(job.topology, layers, widths))
        activity = job.activity([info.width.id for info in infos])
        changes, notes = [], []
        for info in infos:
            dead = activity.dead(info.width.id)
            notes.append(f"{info.name}: {len(dead)} of {info.size} units dead on {activity.probes.rows} probes")
            if not dead:
                continue
            pairs = _donors(info.name, dead, weight_score(job.network, info.width.id))
            changes.append(change.recycle(info.width.id, info.size, pairs, noise))
        if not changes:
            notes.append("no dead units: the output is a copy")
        return Selection(tuple(changes), tuple(notes), activity)

    return select


def _donors(name: str, dead: Sequence[int], scores: Scores) -> list[tuple[int, int]]:
    """A live unit for each dead one, the best first, each as seldom as possible."""
    gone = set(dead)
    live = [int(unit) for unit in np.argsort(-scores, kind="stable") if int(unit) not in gone]
    if not live:
        raise Refused(f"{name}: all of its units are dead; there is none to copy (expand it instead)")
    return [(unit, live[n % len(live)]) for n, unit in enumerate(dead)]
