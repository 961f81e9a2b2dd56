"""Duplicates go, and the units that they equal take over what they passed on: `prune --duplicates`."""

from __future__ import annotations

from collections.abc import Sequence

from netgrow_cli.errors import Refused
from netgrow_cli.jobs.job import Job, Selection
from netgrow_cli.surgery import change
from netgrow_cli.surgery.duplicates import duplicate_units
from netgrow_cli.surgery.select import size_class
from netgrow_cli.topology.solve import WidthInfo


def merged(job: Job, infos: Sequence[WidthInfo]) -> Selection:
    """Units that are copies of others are merged into them."""
    changes, notes = [], []
    for info in infos:
        if len(size_class(job.topology, info.width.id)) > 1:
            raise Refused(f"{info.name}: its size is tied to another's, so its duplicates alone cannot go")
        pairs = duplicate_units(job.network, info.width.id)
        notes.append(f"{info.name}: {len(pairs)} of {info.size} units are copies of others")
        if pairs:
            changes.append(change.merge(info.width.id, info.size, [(gone, kept, 1.0) for gone, kept in pairs]))
    if not changes:
        notes.append("no duplicates: the output is a copy")
    return Selection(tuple(changes), tuple(notes))
