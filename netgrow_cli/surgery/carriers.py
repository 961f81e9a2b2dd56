"""Widths that products of activations sum over (the size of queries and keys): who plays the part of the reader.

No weights read such a width, it is made on two sides: sum over d of q_d k_d. So the rows that make one side, the
*carriers*, are treated as columns that read it would be: fresh units are zero there, copies share what they carry,
merged units are added up. The rows of the other side are treated as rows are. That is exact where the carriers reach
the sum linearly (for fresh units: where zero stays zero), and where nothing else reads what they make.

Where the sum is divided by the root of its size (attention), carriers are multiplied by sqrt(D / d) besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from netgrow_cli.errors import Refused
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.feeds import Feed, Feeds, Flags, Place, holds, summed_axes, sums
from netgrow_cli.topology.layout import leaves, new_size
from netgrow_cli.topology.ops.attention import follows_size
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import Effect, Topology

Factors = NDArray[np.float64]


@frozen
class Carriers:
    """What carries.

    rows: by tensor, axis and width, for each old index whether it is a carrier's row.
    factors: by tensor and axis, what rows are multiplied by.
    """

    rows: Mapping[tuple[str, int, int], Flags]
    factors: Mapping[Place, Factors]


NONE = Carriers({}, {})


@frozen
class _Sum:
    """One product of activations: what makes its operands, by operand, and the factor that carriers need."""

    node: str
    feeds: Mapping[int, Feed]
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
    found = dict.fromkeys(effect for effect in topology.effects if sums(effect) and holds(effect.layout, family))
    products = [
        _Sum(
            effect.node,
            {operand: feeds.of(effect.node, operand) for operand, _ in summed_axes(topology, effect)},
            _factor(topology, effect, sizes),
        )
        for effect in found
    ]
    search = _Search(topology, feeds, products, changes)
    carriers = search.complete({}, [])
    if carriers is None:
        name = " and ".join(topology.widths[change.width].name for change in changes)
        raise Refused(
            f"{changes[0].kind} of {name}: {products[0].node!r} sums over it, and neither side can make up for "
            f"that: {'; '.join(dict.fromkeys(search.tried))}"
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


class _Search:
    """Chooses a carrier for each sum, the first operand where it can be; what was tried in vain is kept."""

    def __init__(
        self, topology: Topology, feeds: Feeds, products: Sequence[_Sum], changes: Sequence[WidthChange]
    ) -> None:
        self.tried: list[str] = []
        self._topology = topology
        self._feeds = feeds
        self._products = products
        self._kinds = {change.kind for change in changes}
        self._read = {(use.tensor, use.axis) for use in topology.uses for _, r in use.parts if r is Role.CONSUMES}

    def complete(
        self, carriers: Mapping[Place, Factors], chosen: Sequence[tuple[str, int, Feed]]
    ) -> Mapping[Place, Factors] | None:
        """The carriers of all sums, with their factors (nan elsewhere), where those chosen so far carry."""
        if len(chosen) == len(self._products):
            leak = self._feeds.leak(chosen)
            if leak is not None:
                self.tried.append(f"the rows that {chosen[0][0]!r} reads are read by {leak} too")
            return carriers if leak is None else None
        current = self._products[len(chosen)]
        for operand, feed in current.feeds.items():
            merged = _merged(carriers, feed, current.factor)
            problem = self._problem(current, feed)
            if merged is None or problem is not None:
                self.tried.append(problem or f"the rows that {current.node!r} reads need another factor elsewhere")
                continue
            found = self.complete(merged, [*chosen, (current.node, operand, feed)])
            if found is not None:
                return found
        return None

    def _problem(self, current: _Sum, feed: Feed) -> str | None:
        """Why an operand cannot carry by itself."""
        linear = self._kinds - {"expand"} or current.factor != 1.0
        stops = feed.bends if linear else feed.shifts
        if stops or not feed.rows:
            kind = "linear" if linear else "zero at zero"
            return f"what {current.node!r} reads passes {stops[0] if stops else 'no layer'!r}, which is not {kind}"
        for norm in feed.gains.values():
            if self._kinds - {"prune"} and self._topology.graph.node(norm).attrs.get("offset"):
                return f"{norm!r} stores its gain less one, which cannot be shared"
        tied = next((place[0] for place in feed.rows if place in self._read), None)
        return None if tied is None else f"{tied} makes these units and reads them with the same numbers"


def _merged(carriers: Mapping[Place, Factors], feed: Feed, factor: float) -> Mapping[Place, Factors] | None:
    """The carriers with one more operand's rows; None where these have another factor already."""
    merged = dict(carriers)
    for place, flags in feed.rows.items():
        old = merged.get(place, np.full(len(flags), np.nan))
        if bool((flags & ~np.isnan(old) & (old != factor)).any()):
            return None
        merged[place] = np.where(flags, factor, old)
    return merged
