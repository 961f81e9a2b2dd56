"""Dead units go: `prune --dead`."""

from __future__ import annotations

from collections.abc import Sequence

from netgrow_cli.errors import Refused
from netgrow_cli.jobs.job import Job, Selection
from netgrow_cli.surgery import change
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.select import Target, free_widths, size_class, with_tied


def removed(job: Job, width: int, units: Sequence[int]) -> WidthChange:
    """The units of a width go. Raises Refused where that is all of them."""
    info = job.topology.widths[width]
    if len(units) >= info.size:
        raise Refused(f"{info.name}: that would prune all of its {info.size} units; at least one must stay")
    return change.prune(width, info.size, units)


def dead_units(job: Job, chosen: Sequence[Target]) -> Selection:
    """Units that are constant wherever they are read go."""
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
    changes = tuple(removed(job, width, units) for width, units in found.items() if units)
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
