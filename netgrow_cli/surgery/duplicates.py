"""Units that are others over again: the same numbers, their multiples where no operation minds, or nearly so.

Found by hashing directions: each unit's vector is normalised and projected on a few random directions, and the
projections, on a grid, are its key. Two that are within the tolerance are so in every projection, but for a chance of
1e-8; a unit is looked for in the cells on the nearer side too, so that no edge of the grid hides it. What is found is
then compared number by number. No two units are compared that do not share a cell.
"""

from __future__ import annotations

import collections
import copy
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.multiples import allows, multiples_of
from netgrow_cli.surgery.unit_rows import Folds, UnitRows, Wide
from netgrow_cli.topology.layout import IndexMap
from netgrow_cli.topology.network import Network

PRECISION = {"F64": 2.0**-48, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""How far rounding moves a row of a dtype, relative to its norm. (Of F64, what is calculated with rounds more.)"""

_DIRECTIONS = 8
_HASHED = 4
"""Projections that units have, and how many of these make the key; the others sort out what shares a cell by chance."""

_SURE = 12.0
"""So many times the tolerance two projections may differ: twice, as both vectors are normalised; six deviations."""

Likeness = Literal["equal", "rounded", "multiple", "near"]
"""Bit for bit; but for what the dtype rounds; so many times, as far as that; within the tolerance."""

_BUCKETS = 1 << 16
_ROUNDS = 8


@frozen
class Duplicate:
    """A unit that is `factor` times another. error: what is left of it without that, relative to its norm."""

    gone: int
    kept: int
    factor: float
    kind: Likeness
    error: float


def duplicates(network: Network, widths: Sequence[int], tolerance: float | None = None) -> dict[int, list[Duplicate]]:
    """By width, each unit that stands for an earlier one, and that one.

    tolerance: how far it may be off, relative to its norm; None for as far as its dtype rounds.

    Rows that read units of other widths are compared with the columns of these added up as they are merged. So widths
    come after those that they read; for those that read each other (layers around a residual sum, recurrent units) the
    coarsest choice is taken that holds when it is made use of itself.
    """
    searches = {width: _Search(network, width, tolerance) for width in widths}
    found: dict[int, list[Duplicate]] = {}
    while ready := [w for w in searches if w not in found and not searches[w].reads & (set(searches) - set(found))]:
        for width in ready:
            found[width] = searches[width].pairs(_folds(found))
    circle = {width: search for width, search in searches.items() if width not in found}
    found.update(_in_circle(circle, _folds(found)))
    for width, search in circle.items():  # (more may be near where all of a row is looked at)
        found[width] = search.pairs(_folds(found))
    return {width: found[width] for width in widths}


def _in_circle(searches: Mapping[int, _Search], known: Mapping[int, Folds]) -> dict[int, list[Duplicate]]:
    """Duplicates of widths that read each other: all that nothing else tells apart, less what they tell apart.

    Without multiples, whose factors cannot be known before all of a row is.
    """
    alike = {width: search.equal() for width, search in searches.items()}
    found = {width: search.pairs(known, blank=searches) for width, search in alike.items()}
    for _ in range(_ROUNDS):
        before = {width: [(pair.gone, pair.kept) for pair in pairs] for width, pairs in found.items()}
        for width, search in alike.items():
            if found[width]:
                classes = np.arange(search.size)
                for pair in found[width]:
                    classes[pair.gone] = pair.kept
                found[width] = search.pairs({**known, **_folds(found)}, classes)
        if before == {width: [(pair.gone, pair.kept) for pair in pairs] for width, pairs in found.items()}:
            return found
    return {}


def _folds(found: Mapping[int, Sequence[Duplicate]]) -> dict[int, Folds]:
    return {width: as_folds(pairs) for width, pairs in found.items() if pairs}


def as_folds(found: Sequence[Duplicate]) -> Folds:
    """What units that are merged do to the columns of their readers."""
    return Folds(
        np.array([pair.gone for pair in found], dtype=np.int64),
        np.array([pair.kept for pair in found], dtype=np.int64),
        np.array([pair.factor for pair in found], dtype=np.float64),
    )


class _Search:
    """All searches among the units of one width. reads: the widths whose units its rows read."""

    def __init__(self, network: Network, width: int, tolerance: float | None) -> None:
        self._rows = UnitRows(network, width)
        self._kind = multiples_of(network.solved(), width)
        self._exact = max((PRECISION.get(dtype, PRECISION["F64"]) for dtype in self._rows.dtypes), default=0.0)
        self._tolerance = self._exact if tolerance is None else tolerance
        self.reads = self._rows.read()
        self.size = self._rows.size

    def equal(self) -> _Search:
        """The same search, but for multiples."""
        found = copy.copy(self)
        found._kind = "none"
        return found

    def pairs(
        self, folds: Mapping[int, Folds], classes: IndexMap | None = None, blank: Collection[int] = ()
    ) -> list[Duplicate]:
        """Units and the earlier ones that they stand for. classes: only within the same of these."""
        with np.errstate(all="ignore"):  # (what is not finite is nobody's copy)
            keys = self._keys(folds, blank)
        labels = np.zeros(self._rows.size, dtype=np.int64) if classes is None else classes
        left, found = np.arange(self._rows.size), []
        for _ in range(_ROUNDS):
            candidates = keys.matches(left, labels, self._kind in ("any", "odd"))
            if not len(candidates):
                break
            sure = list(self._compared(candidates, folds, blank))
            found.extend(sure)
            if len(sure) == len(candidates):
                break
            # What was taken for a copy of the wrong unit may be one of another that was not looked at.
            left = np.setdiff1d(candidates[:, 0], [pair.gone for pair in sure])
        return sorted(found, key=lambda pair: pair.gone)

    def _keys(self, folds: Mapping[int, Folds], blank: Collection[int]) -> _Keys:
        grown = np.zeros((self._rows.size, _DIRECTIONS))
        same = np.zeros((self._rows.size, _DIRECTIONS))
        sizes = np.zeros((self._rows.size, 2))
        for units in self._rows.chunks():
            for number, (parts, into) in enumerate(
                zip(self._rows.vectors(units, folds, blank), (grown, same), strict=True)
            ):
                for place, part in enumerate(parts):
                    into[units] += _sketch(part) @ _directions(2 * place + number, min(part.shape[1], _BUCKETS))
                    sizes[units, number] += np.square(part).sum(1)
        sizes = np.sqrt(sizes)
        grown = grown / np.where(sizes[:, :1] > 0.0, sizes[:, :1], 1.0)
        if self._kind == "none":  # (where no length but the same will do, it takes the place of a direction)
            grown[:, 0] = np.log(np.where(sizes[:, 0] > 0.0, sizes[:, 0], 1.0))
        return _Keys(grown, same, sizes[:, 1], max(self._tolerance, PRECISION["F64"]))

    def _compared(
        self, candidates: IndexMap, folds: Mapping[int, Folds], blank: Collection[int]
    ) -> Iterator[Duplicate]:
        """Those that are within the tolerance, number by number."""
        step = max(1, self._rows.chunk() // 2)
        for start in range(0, len(candidates), step):
            pairs = candidates[start : start + step]
            grown, same = self._rows.vectors(pairs[:, 0], folds, blank)
            kept_grown, kept_same = self._rows.vectors(pairs[:, 1], folds, blank)
            for place, (gone, kept) in enumerate(pairs.tolist()):
                ours, theirs = ([part[place] for part in parts] for parts in (grown, kept_grown))
                alike = [part[place] for part in same], [part[place] for part in kept_same]
                pair = self._compare(gone, kept, (ours, theirs), alike)
                if pair is not None:
                    yield pair

    def _compare(
        self, gone: int, kept: int, grown: tuple[list[Wide], list[Wide]], same: tuple[list[Wide], list[Wide]]
    ) -> Duplicate | None:
        differing = _distance(*same) / (_norm(same[0]) or 1.0)
        size = _norm(grown[0]) or 1.0
        plain = max(_distance(*grown) / size, differing)
        if plain == 0.0:
            return Duplicate(gone, kept, 1.0, "equal", 0.0)
        if plain <= min(self._exact, self._tolerance):
            return Duplicate(gone, kept, 1.0, "rounded", plain)
        square = _dot(grown[1], grown[1])
        factor = _dot(*grown) / square if square > 0.0 else 1.0
        factor = -1.0 if self._kind == "odd" and factor < 0.0 else factor
        error = plain
        if factor != 0.0 and allows(self._kind, factor):
            error = max(_distance(grown[0], [factor * part for part in grown[1]]) / size, differing)
        if not error < plain:
            factor, error = 1.0, plain
        if not error <= self._tolerance:
            return None
        return Duplicate(gone, kept, factor, "multiple" if error <= self._exact else "near", error)


@frozen
class _Keys:
    """Projections of all units: of their direction, and of what must be the same, whose norm is `size`."""

    grown: Wide
    same: Wide
    size: Wide
    tolerance: float

    def matches(self, units: IndexMap, classes: IndexMap, negated: bool) -> IndexMap:
        """Rows of (unit, earlier unit) whose projections are within the tolerance; each unit is in one of the two."""
        finite = np.isfinite(np.hstack([self.grown, self.same]).sum(1))
        places = {sign: self._cells(sign) for sign in ((1.0, -1.0) if negated else (1.0,))}
        found: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
        pairs = []
        for unit in units[finite[units]].tolist():
            near = [
                (sign, other)
                for sign, (own, beside) in places.items()
                for cell in itertools.product(*zip(own[unit], beside[unit], strict=True))
                for other in found.get((int(classes[unit]), *cell), ())
            ]
            best = self._nearest(unit, near)
            if best is None:
                home = (int(classes[unit]), *places[1.0][0][unit])
                found[home].append(unit)
            else:
                pairs.append((unit, best))
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def _cells(self, sign: float) -> tuple[list[list[int]], list[list[int]]]:
        """For each unit the cell that it lies in, and for each direction the neighbour on its nearer side."""
        scaled = sign * self.grown[:, :_HASHED] / (2 * _SURE * self.tolerance)
        own = np.floor(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0))
        beside = own + np.where(scaled - own < 0.5, -1.0, 1.0)
        return own.astype(np.int64).tolist(), beside.astype(np.int64).tolist()

    def _nearest(self, unit: int, near: Sequence[tuple[float, int]]) -> int | None:
        if not near:
            return None
        signs, others = np.array([sign for sign, _ in near]), np.array([other for _, other in near])
        apart = np.abs(self.grown[others] * signs[:, None] - self.grown[unit]).max(1)
        differing = np.abs(self.same[others] - self.same[unit]).max(1)
        fits = (apart <= _SURE * self.tolerance) & (differing <= _SURE * self.tolerance * max(self.size[unit], 1e-300))
        return int(others[fits][np.argmin(apart[fits])]) if fits.any() else None


# -- vectors in parts ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _directions(place: int, length: int) -> Wide:
    """Random directions for one part of the vectors."""
    return np.random.default_rng([place, length]).standard_normal((length, _DIRECTIONS))


@functools.lru_cache(maxsize=4)
def _signs(length: int) -> NDArray[np.int8]:
    return np.random.default_rng(length).choice(np.array([-1, 1], dtype=np.int8), length)


def _sketch(part: Wide) -> Wide:
    """Long vectors made shorter: numbers with random signs, added up in so many places."""
    length = part.shape[1]
    if length <= _BUCKETS:
        return part
    signed = np.pad(part * _signs(length), ((0, 0), (0, -length % _BUCKETS)))
    summed: Wide = signed.reshape(len(part), -1, _BUCKETS).sum(1)
    return summed


def _dot(one: Sequence[Wide], other: Sequence[Wide]) -> float:
    return float(sum(float(a @ b) for a, b in zip(one, other, strict=True)))


def _norm(parts: Sequence[Wide]) -> float:
    return float(np.sqrt(_dot(parts, parts)))


def _distance(one: Sequence[Wide], other: Sequence[Wide]) -> float:
    return _norm([a - b for a, b in zip(one, other, strict=True)])
