"""A change of one width is one small object: where each new unit comes from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.layout import IndexMap

Kind = Literal["expand", "split", "prune", "recycle", "merge", "permute"]
Init = Literal["match", "kaiming", "antisymmetric"]

FRESH = -1
DEFAULT_NOISE = 0.2
"""Size of the noise that cancels between copies, relative to the norm of the outgoing column."""


@frozen
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

    @functools.cached_property
    def index(self) -> IndexMap:
        """The sources as an array, which is not to be written to."""
        return _as_index(self.sources)

    @functools.cached_property
    def fresh(self) -> tuple[int, ...]:
        """New units that copy none."""
        return tuple(np.flatnonzero(self.index == FRESH).tolist())

    @functools.cached_property
    def copies(self) -> dict[int, list[int]]:
        """Old units that are there more than once, and the new units that they are."""
        several = np.flatnonzero(self._counts > 1)
        found: dict[int, list[int]] = {unit: [] for unit in several.tolist()}
        for new in np.flatnonzero(np.isin(self.index, several)).tolist():
            found[self.sources[new]].append(new)
        return found

    @functools.cached_property
    def dropped(self) -> tuple[int, ...]:
        """Old units that are gone."""
        return tuple(np.flatnonzero(self._counts == 0).tolist())

    @functools.cached_property
    def _counts(self) -> IndexMap:
        """By old unit, how often it is there."""
        return np.bincount(self.index[self.index != FRESH], minlength=self.before)

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
        same: set[int] = set(self._counts.tolist())
        if self.fresh or len(same) != 1 or 0 in same:
            return None
        return same.pop()

    @property
    def evenly_merged(self) -> bool:
        """Whether every unit that stays takes over as many others, each as it is: the reverse of splitting all."""
        taken = np.bincount([kept for _, kept, _ in self.absorbed], minlength=self.before)[list(self.sources)]
        plain = all(factor == 1.0 for _, _, factor in self.absorbed)
        return plain and self.after + len(self.absorbed) == self.before and len(set(taken.tolist())) == 1


def shares(count: int) -> tuple[float, ...]:
    """What each of `count` copies passes on: powers of two that sum to 1, exact in every floating dtype."""
    return (*(2.0 ** -(n + 1) for n in range(count - 1)), 2.0 ** -(count - 1))


# The blocks of a large network change alike, and then share their indices.
@functools.lru_cache(maxsize=64)
def _grown(size: int, add: int) -> tuple[int, ...]:
    return (*range(size), *[FRESH] * add)


@functools.lru_cache(maxsize=64)
def _as_index(sources: tuple[int, ...]) -> IndexMap:
    index = np.asarray(sources, dtype=np.int64)
    index.flags.writeable = False
    return index


def expand(width: int, size: int, add: int, init: Init = "match") -> WidthChange:
    """`add` fresh units behind the old ones."""
    return WidthChange(width, size, _grown(size, add), "expand", init=init)


def split(width: int, size: int, units: Sequence[int], noise: float, ways: int = 2) -> WidthChange:
    """Each of the units becomes `ways`, the copies behind the old ones."""
    more = [unit for _ in range(ways - 1) for unit in units]
    return WidthChange(width, size, (*range(size), *more), "split", noise=noise)


def prune(width: int, size: int, units: Sequence[int]) -> WidthChange:
    """The units are gone."""
    gone = set(units)
    return WidthChange(width, size, tuple(n for n in range(size) if n not in gone), "prune")


def recycle(width: int, size: int, pairs: Sequence[tuple[int, int]], noise: float) -> WidthChange:
    """Each (unit, live): the unit becomes a copy of the live one."""
    sources = list(range(size))
    for unit, live in pairs:
        sources[unit] = live
    return WidthChange(width, size, tuple(sources), "recycle", noise=noise)


def renew(width: int, size: int, units: Sequence[int], init: Init) -> WidthChange:
    """The units become fresh ones, in their places."""
    fresh = set(units)
    return WidthChange(width, size, tuple(FRESH if n in fresh else n for n in range(size)), "recycle", init=init)


def merge(width: int, size: int, absorbed: Sequence[tuple[int, int, float]]) -> WidthChange:
    """Each (gone, kept, factor): the kept unit takes over what the other passed on, times the factor."""
    gone = {entry[0] for entry in absorbed}
    sources = tuple(n for n in range(size) if n not in gone)
    return WidthChange(width, size, sources, "merge", absorbed=tuple(absorbed))


def permute(width: int, order: Sequence[int]) -> WidthChange:
    """The units in another order."""
    return WidthChange(width, len(order), tuple(int(n) for n in order), "permute")
