"""Which units recycle replaces, and by what: copies of live ones, or fresh ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.jobs.deadness import deadness
from netgrow_cli.jobs.evidence import Evidence
from netgrow_cli.jobs.job import Job, Selection, Selector
from netgrow_cli.jobs.scoring import DEFAULT, scored
from netgrow_cli.proof.activity import Activity
from netgrow_cli.surgery import change
from netgrow_cli.surgery.change import DEFAULT_NOISE, Init, WidthChange
from netgrow_cli.surgery.scores import Scores
from netgrow_cli.surgery.select import Target, free_widths, targets, units_of


def recycling(
    layers: Sequence[str],
    widths: Sequence[str],
    *,
    units: Sequence[int] | None = None,
    every: bool = False,
    proven: bool = False,
    dormant: float | None = None,
    by: str = DEFAULT,
    fresh: bool = False,
    init: Init | None = None,
    noise: float | None = None,
) -> Selector:
    """Dead units (or stated ones, or dormant ones) become copies of those with the highest scores, or fresh."""
    if sum((units is not None, every, proven, dormant is not None)) > 1:
        raise UsageError("say which units: dead ones without a word, or one of --proven, --units 3,7, --dormant TAU")
    if dormant is not None and not (math.isfinite(dormant) and dormant >= 0.0):
        raise UsageError(f"--dormant {dormant}: a number of at least 0 is needed, as in --dormant 0.025")
    if noise is not None and not (math.isfinite(noise) and noise >= 0.0):
        raise UsageError(f"--noise {noise}: a number of at least 0 is needed")
    if init is not None and not fresh:
        raise UsageError(f"--init {init} says how fresh units start; it goes with --fresh")
    if noise is not None and fresh:
        raise UsageError(f"--noise {noise:g} goes between copies; fresh units have none (leave --fresh or --noise out)")

    def select(job: Job) -> Selection:
        chosen = targets(job.topology, layers, widths)
        if units is not None or every:
            found = _stated(job, chosen, units)
        elif dormant is not None:
            found = _dormant(job, chosen, dormant)
        else:
            found = _dead(job, chosen, proven)
        return _replaced(job, found, _Manner(by, fresh, init or "match", DEFAULT_NOISE if noise is None else noise))

    return select


@dataclasses.dataclass(frozen=True)
class _Manner:
    """How units are replaced: by copies of the best by a score, with that much noise, or (fresh) by new ones."""

    by: str
    fresh: bool
    init: Init
    noise: float


@dataclasses.dataclass(frozen=True)
class _Found:
    """The units that are replaced, by width, and those that nobody copies because they are dead or dormant."""

    units: Mapping[int, list[int]]
    idle: Mapping[int, list[int]]
    what: str
    notes: tuple[str, ...]
    activity: Activity | None = None
    evidence: tuple[Evidence, ...] = ()


def _dead(job: Job, chosen: Sequence[Target], proven: bool) -> _Found:
    ids = [info.width.id for info in free_widths(chosen)]
    found = deadness(job, ids, proven_only=proven)
    return _Found(found.dead, found.dead, "dead", found.notes, found.activity, found.evidence)


def _stated(job: Job, chosen: Sequence[Target], units: Sequence[int] | None) -> _Found:
    """Stated units (None: all), whatever they do; a dead one is no donor for them either."""
    if units is not None:
        picked = units_of(job.topology, chosen, units)
    else:
        picked = {info.width.id: list(range(info.size)) for info in free_widths(chosen)}
    found = deadness(job, list(picked))
    notes = []
    for width, which in picked.items():
        info, dead = job.topology.widths[width], set(which) & set(found.dead[width])
        notes.append(f"{info.name}: {len(which)} of {info.size} units stated, {len(dead)} of them dead")
    return _Found(picked, found.dead, "stated", tuple(notes), found.activity, found.evidence)


def _dormant(job: Job, chosen: Sequence[Target], tau: float) -> _Found:
    """Units whose mean absolute activation is at most tau times that of the width's units."""
    ids = [info.width.id for info in free_widths(chosen)]
    scores = scored(job, "dormant", ids)
    found = {width: np.flatnonzero(scores.values[width] <= tau).tolist() for width in ids}
    infos = job.topology.widths
    notes = tuple(
        f"{infos[width].name}: {len(units)} of {infos[width].size} units dormant (score at most {tau:g})"
        for width, units in found.items()
    )
    return _Found(found, found, "dormant", notes)


def _replaced(job: Job, found: _Found, manner: _Manner) -> Selection:
    picked = {width: units for width, units in found.units.items() if units}
    scores = {} if manner.fresh else scored(job, manner.by, list(picked)).values
    changes = [
        _renewed(job, width, units, manner)
        if manner.fresh
        else _copied(job, width, units, (found.idle.get(width, ()), scores[width]), manner, found.what)
        for width, units in picked.items()
    ]
    notes = found.notes if changes else (*found.notes, f"no {found.what} units: the output is a copy")
    return Selection(tuple(changes), notes, found.activity, found.evidence)


def _renewed(job: Job, width: int, units: Sequence[int], manner: _Manner) -> WidthChange:
    return change.renew(width, job.topology.widths[width].size, units, manner.init)


def _copied(
    job: Job, width: int, units: Sequence[int], donors: tuple[Sequence[int], Scores], manner: _Manner, what: str
) -> WidthChange:
    """A donor for each unit, the best by its score first, each as seldom as possible."""
    idle, scores = donors
    info, gone = job.topology.widths[width], {*units, *idle}
    live = [int(unit) for unit in np.argsort(-scores, kind="stable") if int(unit) not in gone]
    if not live:
        all_are = what if len(units) == info.size else f"dead or {what}"
        raise Refused(
            f"{info.name}: all of its units are {all_are}; there is none to copy; what works: --fresh, which starts "
            "them anew"
        )
    pairs = [(unit, live[n % len(live)]) for n, unit in enumerate(units)]
    return change.recycle(width, info.size, pairs, manner.noise)
