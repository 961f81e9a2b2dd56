"""Which units recycle replaces, and by what: copies of live ones, or fresh ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.choosing import EVERYTHING, Choice, choose, chosen_text
from netgrow_cli.jobs.deadness import deadness
from netgrow_cli.jobs.evidence import Evidence
from netgrow_cli.jobs.job import Job, Selection, Selector
from netgrow_cli.jobs.scoring import scored
from netgrow_cli.proof.activity import Activity
from netgrow_cli.surgery import change
from netgrow_cli.surgery.change import DEFAULT_NOISE, Init, WidthChange
from netgrow_cli.surgery.scores import Scores
from netgrow_cli.surgery.select import Target, free_widths, targets, units_of


@frozen
class _Found:
    """The units that are replaced, by width, and what people should know of them.

    what: what they have in common. activity, evidence: where dead units were looked for, which nobody copies.
    """

    units: Mapping[int, list[int]]
    what: str
    notes: tuple[str, ...]
    activity: Activity | None = None
    evidence: tuple[Evidence, ...] = ()


def recycling(
    layers: Sequence[str],
    widths: Sequence[str],
    *,
    units: Sequence[int] | None = None,
    every: bool = False,
    proven: bool = False,
    dormant: float | None = None,
    fresh: bool = False,
    init: Init | None = None,
    noise: float | None = None,
    choice: Choice = EVERYTHING,
) -> Selector:
    """Dead units, or others that are named, become copies of those with the highest scores, or fresh."""
    if sum((units is not None, every, proven, dormant is not None, choice.stated)) > 1:
        raise UsageError(
            "dead units are recycled, unless one of these says which: --units 3,7, --proven, --dormant TAU, "
            "--lowest K, --fraction F, --below C, --top K, --above C"
        )
    choice.check()
    if dormant is not None and not (math.isfinite(dormant) and dormant >= 0.0):
        raise UsageError(f"--dormant {dormant}: a number of at least 0 is needed, as in --dormant 0.025")
    if noise is not None and not (math.isfinite(noise) and noise >= 0.0):
        raise UsageError(f"--noise {noise}: a number of at least 0 is needed")
    if noise is not None and fresh:
        raise UsageError(f"--noise {noise:g} goes between copies, and --fresh makes none; leave one of them out")
    if init is not None and not fresh:
        raise UsageError(f"--init {init} says how fresh units start; it goes with --fresh")
    if choice.round_to is not None:
        raise UsageError("--round-to: recycle leaves all widths as they are")

    def select(job: Job) -> Selection:
        chosen = targets(job.topology, layers, widths)
        if units is not None or every:
            found = _stated(job, chosen, units)
        elif dormant is not None:
            found = _dormant(job, chosen, dormant, choice)
        elif choice.stated:
            picked, scores = choose(job, chosen, choice, going=True)
            note = chosen_text(job, picked, scores)
            found = _Found(picked, "chosen", (note,), evidence=(scores.evidence,))
        else:
            found = _dead(job, chosen, proven)
        picked = {width: which for width, which in found.units.items() if which}
        if fresh:
            changes = [_renewed(job, width, which, init or "match") for width, which in picked.items()]
        else:
            changes = _copies(job, found, picked, choice, DEFAULT_NOISE if noise is None else noise)
        notes = found.notes if changes else (*found.notes, f"no {found.what} units: the output is a copy")
        return Selection(tuple(changes), notes, found.activity, found.evidence)

    return select


# -- which units ---------------------------------------------------------------------------------------


def _dead(job: Job, chosen: Sequence[Target], proven: bool) -> _Found:
    found = deadness(job, [info.width.id for info in free_widths(chosen)], proven_only=proven)
    return _Found(found.dead, "proven dead" if proven else "dead", found.notes, found.activity, found.evidence)


def _stated(job: Job, chosen: Sequence[Target], units: Sequence[int] | None) -> _Found:
    """Stated units (None: all), whatever they do."""
    if units is not None:
        return _Found(units_of(job.topology, chosen, units), "stated", ())
    return _Found({info.width.id: list(range(info.size)) for info in free_widths(chosen)}, "stated", ())


def _dormant(job: Job, chosen: Sequence[Target], tau: float, choice: Choice) -> _Found:
    """Units whose mean absolute activation is at most tau times that of the width's units (ReDo)."""
    scores = scored(job, "dormant", [info.width.id for info in free_widths(chosen)], choice.scores)
    found = {width: np.flatnonzero(values <= tau).tolist() for width, values in scores.values.items()}
    infos = job.topology.widths
    notes = tuple(
        f"{infos[width].name}: {len(units)} of {infos[width].size} units dormant {scores.evidence.text()}"
        for width, units in found.items()
    )
    return _Found(found, "dormant", notes, evidence=(scores.evidence,))


# -- by what -------------------------------------------------------------------------------------------


def _renewed(job: Job, width: int, units: Sequence[int], init: Init) -> WidthChange:
    return change.renew(width, job.topology.widths[width].size, units, init)


def _copies(
    job: Job, found: _Found, picked: Mapping[int, list[int]], choice: Choice, noise: float
) -> list[WidthChange]:
    """Copies of the best by a score, which is `--by`; never of a dead one."""
    if not picked:
        return []
    ids = list(picked)
    dead = found.units if found.what == "dead" else deadness(job, ids).dead
    scores = scored(job, choice.by, ids, choice.scores).values
    return [
        change.recycle(
            width,
            job.topology.widths[width].size,
            _donors(job.topology.widths[width].name, units, dead[width], scores[width], found.what),
            noise,
        )
        for width, units in picked.items()
    ]


def _donors(name: str, units: Sequence[int], dead: Sequence[int], scores: Scores, what: str) -> list[tuple[int, int]]:
    """A live unit for each of the units, the best first, each as seldom as possible."""
    gone = {*units, *dead}
    live = [int(unit) for unit in np.argsort(-scores, kind="stable") if int(unit) not in gone]
    if not live:
        all_are = what if len(units) == len(scores) else f"dead or {what}"
        raise Refused(f"{name}: all of its units are {all_are}, and there is none to copy; what works: --fresh")
    return [(unit, live[n % len(live)]) for n, unit in enumerate(units)]
