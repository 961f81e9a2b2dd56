"""Widths that products of activations sum over (the size of queries and keys): who plays the part of the reader.

No weights read such a width, it is made on two sides: sum over d of q_d k_d. So the rows that make one side, the
*carriers*, are treated as columns that read it would be: fresh units are zero there, copies share what they carry,
merged units are added up. The rows of the other side are treated as rows are. That is exact where the carriers reach
the sum linearly (for fresh units: where zero stays zero), and where nothing else reads what they make.

Where the sum is divided by the root of its size (attention), carriers are multiplied by sqrt(D / d) besides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.errors import Refused
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.feeds import Feed, Feeds, Flags, Place, holds, joined, summed_axes, sums
from netgrow_cli.topology.layout import leaves, new_size
from netgrow_cli.topology.ops.attention import follows_size
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import Effect, Topology

Factors = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Carriers:
    """What carries.

    rows: by tensor, axis and width, for each old index whether it is a carrier's row.
    factors: by tensor and axis, what rows are multiplied by.
    """

    rows: Mapping[tuple[str, int, int], Flags]
    factors: Mapping[Place, Factors]


NONE = Carriers({}, {})


@dataclasses.dataclass(frozen=True)
class _Sum:
    """One product of activations: its operands' feeds, and the factor that carriers need."""

    effect: Effect
    feeds: tuple[Feed, ...]
    factor: float


def find_carriers(topology: Topology, changes: Sequence[WidthChange], sizes: Mapping[int, int]) -> Carriers:
    """The carriers of the changes' widths. Raises Refused where no side can carry."""
    changed = {change.width: change for change in changes if change.kind != "permute"}
    rows: dict[tuple[str, int, int], Flags] = {}
    factors: dict[Place, Factors] = {}
    for family in _families(topology, changed):
        mine = [change for width, change in changed.items() if width in family]
        chosen = _choose(topology, family, mine, sizes)
        rows.update(chosen.rows)
        factors.update(chosen.factors)
    return Carriers(rows, factors)


def _families(topology: Topology, changed: Mapping[int, WidthChange]) -> list[frozenset[int]]:
    """The changed widths that are summed over, each with those that are in the same sum."""
    families: list[frozenset[int]] = []
    for effect in topology.effects:
        widths = frozenset(leaf.id for leaf in leaves(effect.layout))
        if sums(effect) and widths & set(changed):
            touching = [family for family in families if family & widths]
            families = [family for family in families if not family & widths]
            families.append(widths.union(*touching))
    return families


def _choose(
    topology: Topology, family: frozenset[int], changes: Sequence[WidthChange], sizes: Mapping[int, int]
) -> Carriers:
    feeds = Feeds(topology, family)
    found = [effect for effect in topology.effects if sums(effect) and holds(effect.layout, family)]
    all_sums = [
        _Sum(effect, tuple(feeds.of(effect.node, {n: axis}) for n, axis in summed_axes(topology, effect)), factor)
        for effect in dict.fromkeys(found)
        for factor in [_factor(topology, effect, sizes)]
    ]
    tried: list[str] = []
    taken = joined([feed.all_rows for feed in _readers(topology, feeds, family)])
    search = _Search(topology, all_sums, changes, tried)
    carriers = search.complete(0, {}, taken)
    if carriers is None:
        name = " and ".join(topology.widths[change.width].name for change in changes)
        raise Refused(
            f"{changes[0].kind} of {name}: {all_sums[0].effect.node!r} sums over it, and neither side can make up for "
            f"that: {'; '.join(dict.fromkeys(tried))}"
        )
    factors = {place: np.nan_to_num(factor, nan=1.0) for place, factor in carriers.items()}
    return Carriers(
        {(*place, width): ~np.isnan(factor) for place, factor in carriers.items() for width in family},
        {place: factor for place, factor in factors.items() if bool((factor != 1.0).any())},
    )


def _factor(topology: Topology, effect: Effect, sizes: Mapping[int, int]) -> float:
    """What a side must be multiplied by, so that the sum divided by the root of its new size is what it was."""
    node = topology.graph.node(effect.node)
    return math.sqrt(new_size(effect.layout, sizes) / effect.layout.size) if follows_size(node.op, node.attrs) else 1.0


def _readers(topology: Topology, feeds: Feeds, family: frozenset[int]) -> Iterator[Feed]:
    """What all others read of the widths: layers, norms and other operations that see a whole width."""
    names = {effect.node for effect in topology.effects if not sums(effect) and holds(effect.layout, family)}
    for use in topology.uses:
        if any(role is Role.CONSUMES and holds(part, family) for part, role in use.parts):
            names.add(use.node)
    for node in topology.graph.nodes:
        if node.name in names:
            held = feeds.held(node)
            if held:
                yield feeds.of(node.name, dict.fromkeys(held))


class _Search:
    """Chooses a carrier for each sum, so that no row is to be two things; the first operand where it can be."""

    def __init__(
        self, topology: Topology, all_sums: Sequence[_Sum], changes: Sequence[WidthChange], tried: list[str]
    ) -> None:
        self._topology = topology
        self._sums = all_sums
        self._kinds = {change.kind for change in changes}
        self._tried = tried
        self._tied = {(use.tensor, use.axis) for use in topology.uses for _, r in use.parts if r is Role.CONSUMES}

    def complete(
        self, done: int, carriers: Mapping[Place, Factors], taken: Mapping[Place, Flags]
    ) -> Mapping[Place, Factors] | None:
        """The carriers of all sums from `done` on, with their factors (nan elsewhere). taken: rows that are none."""
        if done == len(self._sums):
            return carriers
        current = self._sums[done]
        for n, feed in enumerate(current.feeds):
            others = [other.all_rows for m, other in enumerate(current.feeds) if m != n]
            more, merged = joined([taken, feed.beside, *others]), self._merged(carriers, feed, current)
            problem = self._problem(current, feed) or self._clash(current, merged, more)
            if merged is None or problem is not None:
                self._tried.append(problem or "")
                continue
            found = self.complete(done + 1, merged, more)
            if found is not None:
                return found
        return None

    def _problem(self, current: _Sum, feed: Feed) -> str | None:
        """Why an operand cannot carry by itself."""
        node = current.effect.node
        linear = self._kinds - {"expand"} or current.factor != 1.0
        stops = feed.bends if linear else feed.shifts
        if stops:
            kind = "linear" if linear else "zero at zero"
            return f"what {node!r} reads passes {stops[0]!r}, which is not {kind}"
        if not feed.rows:
            return f"what {node!r} reads is made by no layer"
        for tensor, axis in feed.gains:
            norm = next(use.node for use in self._topology.uses if (use.tensor, use.axis) == (tensor, axis))
            if self._kinds - {"prune"} and self._topology.graph.node(norm).attrs.get("offset"):
                return f"{norm!r} stores its gain less one, which cannot be shared"
        tied = next((tensor for tensor, axis in feed.rows if (tensor, axis) in self._tied), None)
        return None if tied is None else f"{tied} makes these units and reads them with the same numbers"

    def _merged(self, carriers: Mapping[Place, Factors], feed: Feed, current: _Sum) -> Mapping[Place, Factors] | None:
        """The carriers with one more operand's rows; None where these have another factor already."""
        merged = dict(carriers)
        for place, flags in feed.rows.items():
            old = merged.get(place, np.full(len(flags), np.nan))
            if bool((flags & ~np.isnan(old) & (old != current.factor)).any()):
                return None
            merged[place] = np.where(flags, current.factor, old)
        return merged

    def _clash(
        self, current: _Sum, carriers: Mapping[Place, Factors] | None, taken: Mapping[Place, Flags]
    ) -> str | None:
        if carriers is None:
            return f"the rows that {current.effect.node!r} reads need another factor elsewhere"
        for place, factor in carriers.items():
            if place in taken and bool((~np.isnan(factor) & taken[place]).any()):
                return f"the same rows of {place[0]} are read elsewhere than on one side of {current.effect.node!r}"
        return None
