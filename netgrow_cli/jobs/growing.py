"""Which units a growing command makes: expand and split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.jobs.job import Job, Selection, Selector
from netgrow_cli.jobs.scoring import score
from netgrow_cli.surgery import change
from netgrow_cli.surgery.change import Init, WidthChange
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.surgery.select import (
    Target,
    free_widths,
    independent_widths,
    keeping_ties,
    single_widths,
    targets,
    units_of,
)

MOST_UNITS = 1 << 24
"""More units than any width has: beyond it a number was mistyped."""

MOST_WAYS = 16
"""Each further copy of a unit gets half of the one before; beyond this the last ones learn nothing."""


def expanding(
    layers: Sequence[str],
    widths: Sequence[str],
    *,
    add: int | None = None,
    to: int | None = None,
    times: float | None = None,
    init: Init = "match",
) -> Selector:
    """Fresh units behind the old ones, as many as stated, in every width that is tied in size too."""
    if sum(item is not None for item in (add, to, times)) != 1:
        raise UsageError("say how wide: one of --add N, --to N, --times X")

    def select(job: Job) -> Selection:
        chosen = single_widths(job.topology, targets(job.topology, layers, widths))
        wanted = {info.width.id: _more(info.name, info.size, add, to, times) for info in chosen}
        infos = job.topology.widths

        def grown(counts: Mapping[int, int]) -> list[WidthChange]:
            return [change.expand(width, infos[width].size, more, init) for width, more in counts.items()]

        found = following(job, wanted, grown)
        names = ", ".join(info.name for info in chosen)
        notes = [
            f"{infos[width].name} grows too, by {more}: its size is tied to that of {names}"
            for width, more in found.items()
            if width not in wanted
        ]
        return Selection(tuple(grown(found)), tuple(notes))

    return select


def following(
    job: Job, wanted: Mapping[int, int], made: Callable[[Mapping[int, int]], Sequence[WidthChange]]
) -> dict[int, int]:
    """What is wanted, with what follows so that tied sizes stay equal; as far as a plan of it is not refused."""
    needed = keeping_ties(job.topology, wanted)
    every = keeping_ties(job.topology, wanted, strict=False)
    if every != needed:
        try:
            make_plan(job.topology, job.checkpoint.tensors, made(every))
        except Refused:
            return needed
    return every


def _more(name: str, size: int, add: int | None, to: int | None, times: float | None) -> int:
    if times is not None and not math.isfinite(times):
        raise UsageError(f"--times {times}: a finite number is needed")
    wanted = size + add if add is not None else to if to is not None else round(size * (times or 0.0))
    if wanted <= size:
        raise UsageError(f"{name} has {size} units; {wanted} is no expansion (use `netgrow prune` to remove units)")
    if wanted > MOST_UNITS:
        raise UsageError(f"{name} has {size} units; {wanted} are more than any width has (at most {MOST_UNITS})")
    return wanted - size


def splitting(
    layers: Sequence[str],
    widths: Sequence[str],
    *,
    units: Sequence[int] | None = None,
    every: bool = False,
    top: int | None = None,
    above: float | None = None,
    by: str = "weight",
    noise: float = change.DEFAULT_NOISE,
    ways: int = 2,
) -> Selector:
    """Units that become several: stated ones, all, the best by a score, or those above a score."""
    if sum((units is not None, every, top is not None, above is not None)) != 1:
        raise UsageError("say which units: one of --units 3,7 (or all), --top K, --above C")
    if not 2 <= ways <= MOST_WAYS:
        raise UsageError(f"--ways {ways}: a unit is split into 2 to {MOST_WAYS}")
    if above is not None and math.isnan(above):
        raise UsageError("--above nan: a number is needed")
    if not (math.isfinite(noise) and noise >= 0.0):
        raise UsageError(f"--noise {noise}: a number of at least 0 is needed")
    if top is not None and top < 1:
        raise UsageError(f"--top {top}: at least 1 is needed")

    def select(job: Job) -> Selection:
        chosen = targets(job.topology, layers, widths)
        if units is not None:
            picked = units_of(job.topology, chosen, units)
        else:
            picked = _by_score(job, chosen, every, top, above, by)

        def grown(counts: Mapping[int, int]) -> list[WidthChange]:
            found = {width: _best(job, width, picked.get(width, []), count, by) for width, count in counts.items()}
            return [
                change.split(width, job.topology.widths[width].size, units, noise, ways)
                for width, units in found.items()
            ]

        counts = {width: len(units) for width, units in picked.items() if units}
        found = following(job, counts, grown)
        notes = _followed(job, counts, found, by)
        changes = grown(found)
        if not changes:
            notes.append("no unit qualifies: the output is a copy")
        return Selection(tuple(changes), tuple(notes))

    return select


def _by_score(
    job: Job, chosen: Sequence[Target], every: bool, top: int | None, above: float | None, by: str
) -> dict[int, list[int]]:
    if every:
        return {info.width.id: list(range(info.size)) for info in free_widths(chosen)}
    picked: dict[int, list[int]] = {}
    for target in chosen:
        scored = {info.width.id: score(job, by, info.width.id) for info in independent_widths(job.topology, target)}
        ranked = sorted(
            ((float(value), width, unit) for width, values in scored.items() for unit, value in enumerate(values)),
            reverse=True,
        )
        taken = (
            ranked[:top] if top is not None else [entry for entry in ranked if above is not None and entry[0] > above]
        )
        for _, width, unit in taken:
            picked.setdefault(width, []).append(unit)
    return {width: sorted(set(units)) for width, units in picked.items()}


def _best(job: Job, width: int, picked: list[int], count: int, by: str) -> list[int]:
    """The units that were picked of a width; where more are needed, its best by a score too."""
    if len(picked) >= count:
        return picked
    ranked = [int(unit) for unit in np.argsort(-score(job, by, width), kind="stable") if int(unit) not in picked]
    return sorted([*picked, *ranked[: count - len(picked)]])


def _followed(job: Job, wanted: Mapping[int, int], found: Mapping[int, int], by: str) -> list[str]:
    infos = job.topology.widths
    names = ", ".join(infos[width].name for width in wanted)
    return [
        f"{infos[width].name} is split too, its best units by {by}: its size is tied to that of {names}"
        for width, count in found.items()
        if wanted.get(width, 0) < count
    ]
