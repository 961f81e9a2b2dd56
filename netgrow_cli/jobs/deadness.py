"""Which units are dead, on which evidence, and `prune --dead`, which removes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from netgrow_cli.errors import Refused
from netgrow_cli.jobs.evidence import Evidence
from netgrow_cli.jobs.job import Job, Selection
from netgrow_cli.proof.activity import Activity
from netgrow_cli.surgery import change
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.select import Target, free_widths, size_class, with_tied


@dataclasses.dataclass(frozen=True)
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
    activity = job.activity(widths)
    dead = {width: activity.dead(width) for width in widths}
    evidence = (Evidence.of_probes(activity.probes),)
    infos = job.topology.widths
    notes = tuple(
        f"{infos[width].name}: {len(units)} of {infos[width].size} units dead {evidence[0].text()}"
        for width, units in dead.items()
    )
    return Deadness(dead, dict.fromkeys(dead, frozenset()), activity, notes, evidence)


def removed(job: Job, width: int, units: Sequence[int]) -> WidthChange:
    """The units of a width go. Raises Refused where that is all of them."""
    info = job.topology.widths[width]
    if len(units) >= info.size:
        raise Refused(f"{info.name}: that would prune all of its {info.size} units; at least one must stay")
    return change.prune(width, info.size, units)


def dead_units(job: Job, chosen: Sequence[Target]) -> Selection:
    """Units that are constant wherever they are read go."""
    infos = with_tied(job.topology, free_widths(chosen))
    found = deadness(job, [info.width.id for info in infos])
    notes, changes = list(found.notes), []
    for width, units in _evenly(job, found.dead).items():
        info = job.topology.widths[width]
        if len(found.dead[width]) == info.size:
            notes.append(f"{info.name}: all {info.size} units are dead; one stays")
        if units:
            changes.append(removed(job, width, units))
    if not changes:
        notes.append("no dead units: the output is a copy")
    return Selection(tuple(changes), tuple(notes), found.activity, found.evidence)


def _evenly(job: Job, found: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """What goes of each width, never all; widths whose sizes are tied lose the least that all of them can."""
    spare = {width: min(len(units), job.topology.widths[width].size - 1) for width, units in found.items()}
    result = {}
    for width, units in found.items():
        count = min(spare.get(other, 0) for other in size_class(job.topology, width))
        result[width] = units[len(units) - count :]
    return result
