"""Which units recycle replaces, and by what."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.jobs.evidence import Evidence
from netgrow_cli.jobs.job import Job, Selection, Selector
from netgrow_cli.surgery import change
from netgrow_cli.surgery.scores import Scores, weight_score
from netgrow_cli.surgery.select import free_widths, targets


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
        return Selection(tuple(changes), tuple(notes), activity, (Evidence.of_probes(activity.probes),))

    return select


def _donors(name: str, dead: Sequence[int], scores: Scores) -> list[tuple[int, int]]:
    """A live unit for each dead one, the best first, each as seldom as possible."""
    gone = set(dead)
    live = [int(unit) for unit in np.argsort(-scores, kind="stable") if int(unit) not in gone]
    if not live:
        raise Refused(f"{name}: all of its units are dead; there is none to copy (expand it instead)")
    return [(unit, live[n % len(live)]) for n, unit in enumerate(dead)]
