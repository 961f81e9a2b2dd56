"""Which units a growing command makes: expand and split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.jobs.choosing import EVERYTHING, Choice, choose, chosen_text, round_up
from netgrow_cli.jobs.job import Job, Selection, Selector
from netgrow_cli.jobs.scoring import score
from netgrow_cli.surgery import change
from netgrow_cli.surgery.change import Init, WidthChange
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.surgery.select import (
    free_widths,
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
    round_to: int | None = None,
) -> Selector:
    """Fresh units behind the old ones, as many as stated, in every width that is tied in size too."""
    if sum(item is not None for item in (add, to, times)) != 1:
        raise UsageError("say how wide: one of --add N, --to N, --times X")
    if round_to is not None and round_to < 1:
        raise UsageError(f"--round-to {round_to}: at least 1 is needed")

    def select(job: Job) -> Selection:
        chosen = single_widths(job.topology, targets(job.topology, layers, widths))
        wanted = {
            info.width.id: round_up(info.size + _more(info.name, info.size, add, to, times), round_to) - info.size
            for info in chosen
        }
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
    noise: float = change.DEFAULT_NOISE,
    ways: int = 2,
    choice: Choice = EVERYTHING,
) -> Selector:
    """Units that become several: stated ones, all, or those that a score chooses."""
    if sum((units is not None, every, choice.stated)) != 1:
        raise UsageError(
            "say which units: one of --units 3,7 (or all), --top K, --above C, --fraction F, --lowest K, --below C"
        )
    choice.check()
    if not 2 <= ways <= MOST_WAYS:
        raise UsageError(f"--ways {ways}: a unit is split into 2 to {MOST_WAYS}")
    if choice.round_to is not None and ways != 2:
        raise UsageError(f"--round-to goes with --ways 2, not with --ways {ways}")
    if not (math.isfinite(noise) and noise >= 0.0):
        raise UsageError(f"--noise {noise}: a number of at least 0 is needed")

    def select(job: Job) -> Selection:
        chosen = targets(job.topology, layers, widths)
        notes: list[str] = []
        if units is not None:
            picked = units_of(job.topology, chosen, units)
        elif every:
            picked = {info.width.id: list(range(info.size)) for info in free_widths(chosen)}
        else:
            picked, found = choose(job, chosen, choice, going=False)
            notes.append(chosen_text(job, picked, found, choice))

        def grown(counts: Mapping[int, int]) -> list[WidthChange]:
            best = {width: _best(job, width, picked.get(width, []), count, choice) for width, count in counts.items()}
            return [
                change.split(width, job.topology.widths[width].size, units, noise, ways)
                for width, units in best.items()
            ]

        counts = {width: len(units) for width, units in picked.items() if units}
        more = following(job, counts, grown)
        notes += _followed(job, counts, more, choice.name)
        changes = grown(more)
        if not changes:
            notes.append("no unit qualifies: the output is a copy")
        return Selection(tuple(changes), tuple(notes))

    return select


def _best(job: Job, width: int, picked: list[int], count: int, choice: Choice) -> list[int]:
    """The units that were picked of a width; where more are needed, its best by the score too."""
    if len(picked) >= count:
        return picked
    values = score(job, choice.by, width, choice.scores)
    ranked = [int(unit) for unit in np.argsort(-values, kind="stable") if int(unit) not in picked]
    return sorted([*picked, *ranked[: count - len(picked)]])


def _followed(job: Job, wanted: Mapping[int, int], found: Mapping[int, int], by: str) -> list[str]:
    infos = job.topology.widths
    names = ", ".join(infos[width].name for width in wanted)
    return [
        f"{infos[width].name} is split too, its best units by {by}: its size is tied to that of {names}"
        for width, count in found.items()
        if wanted.get(width, 0) < count
    ]
