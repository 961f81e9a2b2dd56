"""Which units prune removes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from netgrow_cli.errors import UsageError
from netgrow_cli.jobs.choosing import EVERYTHING, Choice, Picked, choose, chosen_text
from netgrow_cli.jobs.deadness import dead_units, removed
from netgrow_cli.jobs.job import Job, Selection, Selector
from netgrow_cli.jobs.merging import merged
from netgrow_cli.jobs.scoring import score
from netgrow_cli.surgery.select import (
    free_widths,
    keeping_ties,
    targets,
    units_of,
)


def pruning(
    layers: Sequence[str],
    widths: Sequence[str],
    *,
    units: Sequence[int] | None = None,
    dead: bool = False,
    duplicates: bool = False,
    choice: Choice = EVERYTHING,
) -> Selector:
    """Units that go: stated ones, those that a score chooses, dead ones, or duplicates (which are merged)."""
    if sum((units is not None, choice.stated, dead, duplicates)) != 1:
        raise UsageError(
            "say which units: one of --units 3,7, --dead, --duplicates, --lowest K, --fraction F, --below C, --top K, "
            "--above C"
        )
    choice.check()

    def select(job: Job) -> Selection:
        chosen = targets(job.topology, layers, widths)
        if dead:
            return dead_units(job, chosen)
        if duplicates:
            return merged(job, free_widths(chosen))
        if units is not None:
            return _removal(job, units_of(job.topology, chosen, units), choice, ())
        picked, found = choose(job, chosen, choice, going=True)
        return _removal(job, picked, choice, (chosen_text(job, picked, found, choice),))

    return select


def _removal(job: Job, picked: Picked, choice: Choice, said: Sequence[str]) -> Selection:
    notes = list(said)
    counts = {width: len(units) for width, units in picked.items() if units}
    names = ", ".join(job.topology.widths[width].name for width in counts)
    for other, count in keeping_ties(job.topology, counts, sign=-1).items():
        if len(picked.get(other, ())) < count:
            ranked = np.argsort(score(job, choice.by, other, choice.scores), kind="stable")
            picked[other] = sorted(int(unit) for unit in ranked[:count])
            notes.append(
                f"{job.topology.widths[other].name} is pruned too, its lowest by {choice.name}: its size is tied to "
                f"that of {names}"
            )
    changes = tuple(removed(job, width, units) for width, units in picked.items() if units)
    if not changes:
        notes.append("no unit qualifies: the output is a copy")
    return Selection(changes, tuple(notes))
