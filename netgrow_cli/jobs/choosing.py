"""Which units a score chooses: the best or the worst so many, a share of them, those above or below a number.

For each layer on its own, or over all of them together (`globally`); so that what remains is a multiple of a number
(`round_to`), for hardware that wants one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from netgrow_cli.errors import UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.job import Job
from netgrow_cli.jobs.scoring import Scored, name_of, scored
from netgrow_cli.surgery.scores import Scores
from netgrow_cli.surgery.select import Target, independent_widths

Picked = dict[int, list[int]]
"""Units by width id."""

CRITERIA = ("top", "lowest", "above", "below", "fraction")


@frozen
class Choice:
    """A criterion, and the score that it is about.

    One of: top, lowest: so many units; above, below: those whose score is; fraction: a share of the units, the lowest
    where they go and the highest where they are split. by: the score's name; scores: a file that holds it.
    globally: over all named layers together, not in each. round_to: new widths are multiples of it.
    """

    top: int | None = None
    lowest: int | None = None
    above: float | None = None
    below: float | None = None
    fraction: float | None = None
    by: str | None = None
    scores: str | Path | None = None
    globally: bool = False
    round_to: int | None = None

    @property
    def name(self) -> str:
        """What the score is called."""
        return name_of(self.by, self.scores)

    @property
    def stated(self) -> bool:
        """Whether there is a criterion."""
        return any(getattr(self, name) is not None for name in CRITERIA)

    @property
    def counts(self) -> bool:
        """Whether it says how many units, not which scores."""
        return self.above is None and self.below is None

    def highest(self, going: bool) -> bool:
        """Whether it takes the units with the highest scores."""
        return self.top is not None or self.above is not None or (self.fraction is not None and not going)

    def check(self) -> None:
        """Raises UsageError for what cannot be meant."""
        given = [name for name in CRITERIA if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1]} both say which units; give one of them")
        for name in ("top", "lowest", "round_to"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
        for name in ("above", "below"):
            value = getattr(self, name)
            if value is not None and math.isnan(value):
                raise UsageError(f"--{name} nan: a number is needed")
        if self.fraction is not None and not 0.0 < self.fraction < 1.0:
            raise UsageError(f"--fraction {self.fraction}: a number between 0 and 1 is needed")
        for name, said in (("globally", self.globally), ("round-to", self.round_to is not None)):
            if said and not given:
                raise UsageError(f"--{name} needs a criterion: one of {', '.join(f'--{item}' for item in CRITERIA)}")


EVERYTHING = Choice()
"""No criterion."""


def choose(job: Job, chosen: Sequence[Target], choice: Choice, *, going: bool) -> tuple[Picked, Scored]:
    """The units that a criterion chooses, and the scores. going: they are removed, so that never all of a width are.

    Raises UsageError.
    """
    widths = {target.name: [info.width.id for info in independent_widths(job.topology, target)] for target in chosen}
    every = list(dict.fromkeys(itertools.chain.from_iterable(widths.values())))
    found = scored(job, choice.by, every, choice.scores)
    groups = [(", ".join(widths), list(found.values))] if choice.globally else list(widths.items())
    picked: dict[int, set[int]] = {}
    for name, ids in groups:
        of_group = {width: found.values[width] for width in ids}
        for width, units in taken(name, of_group, choice, going=going).items():
            picked.setdefault(width, set()).update(units)
    if going:  # (several layers may have chosen parts of one width)
        picked = {width: _sparing(found.values[width], units) for width, units in picked.items()}
    listed = {width: sorted(units) for width, units in picked.items()}
    return rounded(listed, found.values, choice, going=going), found


def chosen_text(job: Job, picked: Picked, found: Scored) -> str:
    """How many units of how many were chosen, by what, on what evidence."""
    some = {width: units for width, units in picked.items() if units}
    names = ", ".join(f"{job.topology.widths[width].name} {len(units)}" for width, units in list(some.items())[:6])
    more = f", and {len(some) - 6} widths more" if len(some) > 6 else ""
    total = sum(len(values) for values in found.values.values())
    counted = f"{sum(map(len, some.values()))} of {total} units"
    return f"{counted} chosen by {found.by}, {found.evidence.text()}" + (f" ({names}{more})" if len(some) > 1 else "")


def taken(name: str, scores: Mapping[int, Scores], choice: Choice, *, going: bool) -> dict[int, list[int]]:
    """What a criterion takes of some widths together; of units that go, never all of a width."""
    ranked = sorted(_entries(scores), reverse=choice.highest(going))
    if choice.above is not None:
        ranked = [entry for entry in ranked if entry[0] > choice.above]
    elif choice.below is not None:
        ranked = [entry for entry in ranked if entry[0] < choice.below]
    total, count = len(ranked), _count(choice, len(ranked))
    if going and choice.counts and count >= total:
        raise UsageError(f"{name!r} has {total} units; at least one must stay")
    picked: dict[int, list[int]] = {}
    for _, width, unit in ranked:
        units = picked.setdefault(width, [])
        if count > 0 and len(units) < len(scores[width]) - going:
            units.append(unit)
            count -= 1
    return picked


def _count(choice: Choice, total: int) -> int:
    """How many of the units that qualify are meant."""
    if choice.fraction is not None:
        return math.floor(choice.fraction * total)
    return total if not choice.counts else (choice.top if choice.top is not None else choice.lowest) or 0


def _entries(scores: Mapping[int, Scores]) -> Iterator[tuple[float, int, int]]:
    for width, values in scores.items():
        for unit, value in enumerate(values):
            yield float(value), width, unit


def _sparing(scores: Scores, units: set[int]) -> set[int]:
    """The units, but for the best of them where they are all there are."""
    return units if len(units) < len(scores) else units - {int(np.argmax(scores))}


def rounded(picked: Picked, scores: Mapping[int, Scores], choice: Choice, *, going: bool) -> Picked:
    """What is picked, with fewer units that go or more that come, so that each width is a multiple of a number.

    Where not enough can come (every unit is split already), fewer do.
    """
    if choice.round_to is None:
        return picked
    result = {}
    for width, units in picked.items():
        values = scores[width]
        count = rounded_count(len(values), len(units), choice.round_to, going=going)
        ranked = np.argsort(-values if choice.highest(going) else values, kind="stable").tolist()
        chosen = set(units)
        surest = [unit for unit in ranked if unit in chosen] + [unit for unit in ranked if unit not in chosen]
        result[width] = sorted(surest[:count])
    return result


def round_up(size: int, multiple: int | None) -> int:
    """The next multiple."""
    return size if multiple is None else math.ceil(size / multiple) * multiple


def rounded_count(size: int, count: int, multiple: int, *, going: bool) -> int:
    """How many go of `size`, at most `count`, or come, at least `count` if there are as many, for a multiple."""
    if count == 0:
        return 0
    if going:
        return max(0, size - round_up(size - count, multiple))
    more = round_up(size + count, multiple) - size
    return more if more <= size else max(0, (2 * size) // multiple * multiple - size)
