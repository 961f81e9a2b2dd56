"""A change of one width is one small object: where each new unit comes from."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal

Kind = Literal["expand", "split", "prune", "recycle", "merge", "permute"]
Init = Literal["match", "kaiming", "antisymmetric"]

FRESH = -1
DEFAULT_NOISE = 0.2
"""Size of the noise that cancels between copies, relative to the norm of the outgoing column."""


@dataclasses.dataclass(frozen=True)
class WidthChange:
    """What becomes of the units of one width.

    width: its id in the topology. before: its size.
    sources: for each new unit the old unit it copies, or -1 for a fresh one.
    noise: between copies, on what reads them, relative to the column's norm; it cancels.
    init: how fresh units start.
    absorbed: old units whose outgoing weights another takes over: (old unit, by old unit, factor).
    """

    width: int
    before: int
    sources: tuple[int, ...]
    kind: Kind
    noise: float = 0.0
    init: Init = "match"
    absorbed: tuple[tuple[int, int, float], ...] = ()

    @property
    def after(self) -> int:
        """The new size."""
        return len(self.sources)

    @property
    def fresh(self) -> tuple[int, ...]:
        """New units that copy none."""
        return tuple(n for n, source in enumerate(self.sources) if source == FRESH)

    @property
    def copies(self) -> dict[int, list[int]]:
        """Old units that are there more than once, and the new units that they are."""
        places: dict[int, list[int]] = collections.defaultdict(list)
        for new, source in enumerate(self.sources):
            if source != FRESH:
                places[source].append(new)
        return {old: new for old, new in places.items() if len(new) > 1}

    @property
    def dropped(self) -> tuple[int, ...]:
        """Old units that are gone."""
        kept = set(self.sources)
        return tuple(unit for unit in range(self.before) if unit not in kept)

    @property
    def mirrors(self) -> tuple[tuple[int, int], ...]:
        """Pairs of fresh units that cancel each other (antisymmetric initialisation)."""
        if self.init != "antisymmetric":
            return ()
        fresh = self.fresh
        return tuple(zip(fresh[0::2], fresh[1::2], strict=False))

    @property
    def multiple(self) -> int | None:
        """How often every unit is there, if all are there equally often and none is fresh."""
        counts = collections.Counter(self.sources)
        same = set(counts.values())
        if FRESH in counts or len(counts) != self.before or len(same) != 1:
            return None
        return same.pop()


def shares(count: int) -> tuple[float, ...]:
    """What each of `count` copies passes on: powers of two that sum to 1, exact in every floating dtype."""
    return (*(2.0 ** -(n + 1) for n in range(count - 1)), 2.0 ** -(count - 1))


def expand(width: int, size: int, add: int, init: Init = "match") -> WidthChange:
    """`add` fresh units behind the old ones."""
    return WidthChange(width, size, (*range(size), *[FRESH] * add), "expand", init=init)


def split(width: int, size: int, units: Sequence[int], noise: float, ways: int = 2) -> WidthChange:
    """Each of the units becomes `ways`, the copies behind the old ones."""
    more = [unit for _ in range(ways - 1) for unit in units]
    return WidthChange(width, size, (*range(size), *more), "split", noise=noise)


def prune(width: int, size: int, units: Sequence[int]) -> WidthChange:
    """The units are gone."""
    gone = set(units)
    return WidthChange(width, size, tuple(n for n in range(size) if n not in gone), "prune")


def recycle(width: int, size: int, pairs: Sequence[tuple[int, int]], noise: float) -> WidthChange:
    """Each (dead, live): the dead unit becomes a copy of the live one."""
    sources = list(range(size))
    for dead, live in pairs:
        sources[dead] = live
    return WidthChange(width, size, tuple(sources), "recycle", noise=noise)


def merge(width: int, size: int, absorbed: Sequence[tuple[int, int, float]]) -> WidthChange:
    """Each (gone, kept, factor): the kept unit takes over what the other passed on, times the factor."""
    gone = {entry[0] for entry in absorbed}
    sources = tuple(n for n in range(size) if n not in gone)
    return WidthChange(width, size, sources, "merge", absorbed=tuple(absorbed))


def permute(width: int, order: Sequence[int]) -> WidthChange:
    """The units in another order."""
    return WidthChange(width, len(order), tuple(int(n) for n in order), "permute")
