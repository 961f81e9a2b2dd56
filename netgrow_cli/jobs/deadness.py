"""Which units are dead, on which evidence, and `prune --dead`, which removes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netgrow_cli.errors import Refused
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.evidence import Evidence
from netgrow_cli.jobs.job import Job, Selection
from netgrow_cli.proof.activity import Activity, observe
from netgrow_cli.proof.bounds import prove, ranges
from netgrow_cli.proof.probes import random_probes
from netgrow_cli.surgery import change
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.select import Target, free_widths, size_class, with_tied


@frozen
class Deadness:
    """Units that are constant wherever they are read.

    dead: by width, all of them. proven: by width, those of them that are so for every input; the rest were only seen
        to be so. activity: for `Selection.activity`. evidence: what `dead` stands on. notes: a line for each width.
    """

    dead: Mapping[int, list[int]]
    proven: Mapping[int, frozenset[int]]
    activity: Activity | None
    notes: tuple[str, ...]
    evidence: tuple[Evidence, ...] = ()


def deadness(job: Job, widths: Sequence[int], proven_only: bool = False) -> Deadness:
    """The dead units of some widths. proven_only: only those that are dead for every input."""
    graph = job.network.graph
    if proven_only:  # one row tells which constants these units are
        row = random_probes(graph, 1, job.options.seed + 1)
        seen = observe(job.network, widths, row, dtype=job.options.dtype)
        data = job.probes(1, job.options.seed) if job.options.probe_data is not None else None
        known = prove(job.network, widths, data)
        activity = known.alone(seen)
    else:
        seen = job.activity(widths)
        known = prove(job.network, widths, seen.probes)
        activity = known.beside(seen)
    alone = known.alone(activity)
    proven = {width: frozenset(alone.dead(width)) for width in widths}
    dead = {width: activity.dead(width) for width in widths}
    probes, bounds = Evidence.of_probes(seen.probes), Evidence("bounds", origin=ranges(graph))
    only_seen = not proven_only and (
        any(set(dead[width]) - proven[width] for width in widths) or not any(dead.values())
    )
    evidence = (*((probes,) if only_seen else ()), *((bounds,) if proven_only or any(proven.values()) else ()))
    notes = tuple(
        _note(job, width, units, proven[width], None if proven_only else probes, bounds)
        for width, units in dead.items()
    )
    return Deadness(dead, proven, activity, notes, evidence)


def _note(
    job: Job, width: int, dead: Sequence[int], proven: frozenset[int], seen: Evidence | None, bounds: Evidence
) -> str:
    """How many units of a width are dead, and how many of these only as far as was seen."""
    info = job.topology.widths[width]
    if seen is None:
        return f"{info.name}: {len(proven)} of {info.size} units proven dead {bounds.text()}"
    found = f"{info.name}: {len(dead)} of {info.size} units dead {seen.text()}"
    if not dead:
        return found
    if not proven:
        return f"{found}, none of them proven"
    return f"{found}, {'all' if len(proven) == len(dead) else len(proven)} of them proven dead {bounds.text()}"


def removed(job: Job, width: int, units: Sequence[int]) -> WidthChange:
    """The units of a width go. Raises Refused where that is all of them."""
    info = job.topology.widths[width]
    if len(units) >= info.size:
        raise Refused(f"{info.name}: that would prune all of its {info.size} units; at least one must stay")
    return change.prune(width, info.size, units)


def dead_units(job: Job, chosen: Sequence[Target], *, proven_only: bool = False) -> Selection:
    """Units that are constant wherever they are read go; proven_only: those that are so for every input."""
    infos = with_tied(job.topology, free_widths(chosen))
    found = deadness(job, [info.width.id for info in infos], proven_only)
    notes, changes = list(found.notes), []
    for width, units in _evenly(job, found).items():
        info = job.topology.widths[width]
        if len(found.dead[width]) == info.size:
            notes.append(f"{info.name}: all {info.size} units are dead; one stays")
        if units:
            changes.append(removed(job, width, units))
    if not changes:
        notes.append("no dead units: the output is a copy")
    sure = changes and all(set(one.dropped) <= found.proven[one.width] for one in changes)
    evidence = tuple(one for one in found.evidence if one.kind == "bounds" or not sure)
    return Selection(tuple(changes), tuple(notes), found.activity, evidence)


def _evenly(job: Job, found: Deadness) -> dict[int, list[int]]:
    """What goes of each width, never all, what is proven first; widths whose sizes are tied lose the least that all of
    them can."""
    spare = {width: min(len(units), job.topology.widths[width].size - 1) for width, units in found.dead.items()}
    result = {}
    for width, units in found.dead.items():
        count = min(spare.get(other, 0) for other in size_class(job.topology, width))
        surest = sorted(units, key=lambda unit: (unit in found.proven[width], unit))
        result[width] = sorted(surest[len(units) - count :])
    return result
