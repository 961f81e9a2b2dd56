"""The layout of a tensor axis: a small algebra, and unification over it.

An axis of a tensor is indexed by *units* (neurons, channels, heads). A **layout** says which:

    layout := Width(size)            a leaf: units that can be permuted, added, removed
            | Fixed(size, why)       indices that mean something by themselves: kernel taps, positions
            | Concat(layout, ...)    one after the other: torch.cat, fused weights
            | Product(layout, ...)   row-major grid: flatten, heads; the last factor varies fastest

Layouts are immutable. What is learnt about them is kept by a `Layouts` store, in which a Width may be
bound to a structure (it was cut, factored, or found equal to another) or frozen (it may not change, and
why). `Layouts.unify` is the only way two axes come to agree, so it is here that coupling between layers is
found. What cannot be aligned is frozen, never guessed.

Normal form, kept by `concat` and `product`: no nesting of a kind directly in itself, no Concat as the first
factor of a Product (it distributes: `(a + b) 7` is `a 7 + b 7`), no literal factor of size 1, no empty part.

No torch here: this module is pure data and integers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from netgrow_cli.frozen import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    IndexMap = NDArray[np.int64]
else:  # importing numpy takes longer than inferring a network's layouts; only index maps need it
    IndexMap = "NDArray[np.int64]"

# A concatenation that must equal the same parts in another order is refined as Euclid finds a common divisor:
# one step a unit in the worst case, down to parts of one unit that nobody could change.
_MOST_STEPS = 32
_NO_END = "it must equal its own parts in another order, which leaves no units to choose from"


@frozen
class Width:
    """Interchangeable units. Two axes with the same Width change together."""

    id: int
    size: int


@frozen
class Fixed:
    """Indices that may not change, and why."""

    size: int
    why: str = dataclasses.field(default="", compare=False)


@frozen
class Concat:
    """Parts one after the other."""

    parts: tuple[Layout, ...]

    @functools.cached_property
    def size(self) -> int:
        """Number of indices."""
        return sum(part.size for part in self.parts)

    @functools.cached_property
    def widths(self) -> tuple[Width, ...]:
        """Its leaves that are widths, from left to right, as often as they occur."""
        return _widths_of(self.parts)


@frozen
class Product:
    """A row-major grid of its factors."""

    factors: tuple[Layout, ...]

    @functools.cached_property
    def size(self) -> int:
        """Number of indices."""
        return math.prod(factor.size for factor in self.factors)

    @functools.cached_property
    def widths(self) -> tuple[Width, ...]:
        """Its leaves that are widths, from left to right, as often as they occur."""
        return _widths_of(self.factors)


Layout = Width | Fixed | Concat | Product


class CannotAlign(Exception):
    """Two ways of reading one axis have no common refinement; the message says where they collide."""


class SizeMismatch(Exception):
    """Two axes that must agree have different sizes."""

    def __init__(self, left: Layout, right: Layout) -> None:
        super().__init__(f"{left.size} against {right.size}")
        self.left = left
        self.right = right


def concat(parts: Sequence[Layout]) -> Layout:
    """Parts one after the other, in normal form; literal neighbours are joined."""
    flat: list[Layout] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Concat) else (part,):
            if piece.size == 0 and len(parts) > 1:
                continue
            if flat and isinstance(piece, Fixed) and isinstance(flat[-1], Fixed):
                flat[-1] = Fixed(flat[-1].size + piece.size, flat[-1].why or piece.why)
            else:
                flat.append(piece)
    if not flat:
        return Fixed(0, "an axis of size zero")
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def product(factors: Sequence[Layout]) -> Layout:
    """A row-major grid, in normal form."""
    flat: list[Layout] = []
    for factor in factors:
        for piece in factor.factors if isinstance(factor, Product) else (factor,):
            if isinstance(piece, Fixed) and piece.size == 1:
                continue
            if flat and isinstance(piece, Fixed) and isinstance(flat[-1], Fixed):
                flat[-1] = Fixed(flat[-1].size * piece.size, flat[-1].why or piece.why)
            else:
                flat.append(piece)
    if not flat:
        return Fixed(1, "an axis of size one")
    if len(flat) == 1:
        return flat[0]
    if isinstance(flat[0], Concat):
        return concat([product([part, *flat[1:]]) for part in flat[0].parts])
    return Product(tuple(flat))


def leaves(layout: Layout) -> tuple[Width, ...]:
    """The widths of a layout from left to right, as often as they occur."""
    if isinstance(layout, Width):
        return (layout,)
    return () if isinstance(layout, Fixed) else layout.widths


def _widths_of(layouts: Iterable[Layout]) -> tuple[Width, ...]:
    return tuple(itertools.chain.from_iterable(map(leaves, layouts)))


def new_size(layout: Layout, sizes: Mapping[int, int]) -> int:
    """The layout's size once the widths named by id in `sizes` have those sizes."""
    if isinstance(layout, Width):
        return sizes.get(layout.id, layout.size)
    if isinstance(layout, Concat):
        return sum(new_size(part, sizes) for part in layout.parts)
    if isinstance(layout, Product):
        return math.prod(new_size(factor, sizes) for factor in layout.factors)
    return layout.size


def index_map(layout: Layout, sources: Mapping[int, Sequence[int] | IndexMap]) -> IndexMap:
    """For each index of the changed axis, the old index it comes from, or -1 where any unit of it is fresh.

    sources: by width id, for each new unit the old unit it copies, or -1; a width not named keeps its units.
    """
    import numpy as np

    if isinstance(layout, Width) and layout.id in sources:
        return np.asarray(sources[layout.id], dtype=np.int64).reshape(-1)
    if isinstance(layout, (Width, Fixed)):
        return np.arange(layout.size, dtype=np.int64)
    if isinstance(layout, Concat):
        offset, maps = 0, []
        for part in layout.parts:
            inner = index_map(part, sources)
            maps.append(np.where(inner < 0, -1, inner + offset))
            offset += part.size
        return np.concatenate(maps)
    out = np.zeros(1, dtype=np.int64)
    for factor in layout.factors:
        inner = index_map(factor, sources)
        fresh = (out[:, None] < 0) | (inner[None, :] < 0)
        out = np.where(fresh, -1, out[:, None] * factor.size + inner[None, :]).reshape(-1)
    return out


def occurrences(layout: Layout, width: int, sizes: Mapping[int, int] | None = None) -> list[IndexMap]:
    """Each place where a width stands in a layout: for every index of the axis, its unit, or -1 if none.

    sizes: by width id, sizes other than the layout's own (those after a change).
    """
    import numpy as np

    sizes = sizes or {}
    if isinstance(layout, Width):
        return [np.arange(new_size(layout, sizes), dtype=np.int64)] if layout.id == width else []
    if isinstance(layout, Fixed):
        return []
    children = layout.parts if isinstance(layout, Concat) else layout.factors
    extents = [new_size(child, sizes) for child in children]
    found: list[IndexMap] = []
    for position, child in enumerate(children):
        for inner in occurrences(child, width, sizes):
            if isinstance(layout, Concat):
                before, after = sum(extents[:position]), sum(extents[position + 1 :])
                found.append(np.pad(inner, (before, after), constant_values=-1))
            else:
                outer, below = math.prod(extents[:position]), math.prod(extents[position + 1 :])
                found.append(np.tile(np.repeat(inner, below), outer))
    return found


def rows_by_unit(values: NDArray[Any], axis: int, labels: IndexMap, size: int) -> NDArray[Any]:
    """For each of `size` units, all numbers that are indexed by it along an axis, in one row.

    labels: one of the width's `occurrences` in that axis's layout.
    """
    import numpy as np

    there = np.flatnonzero(labels >= 0)
    order = there[np.argsort(labels[there], kind="stable")]
    rows: NDArray[Any] = values.swapaxes(0, axis)[order].reshape(size, -1)
    return rows


class Layouts:
    """The store of what is known about widths: their bindings to structures, and which are frozen."""

    def __init__(self) -> None:
        self._bound: dict[int, Layout] = {}
        self._frozen: dict[int, str] = {}
        self._hint: dict[int, str] = {}
        self._next = 0

    # -- reading ---------------------------------------------------------------------------------

    def resolve(self, layout: Layout) -> Layout:
        """The layout with everything known put in, in normal form; itself where that is nothing new."""
        if isinstance(layout, Width):
            found = self._bound.get(layout.id)
            if found is None or isinstance(found, Fixed):
                return layout if found is None else found
            if isinstance(found, Width) and found.id not in self._bound:
                return found
            return self._resolve_width(layout)
        if isinstance(layout, Fixed) or not self._has_bound_leaf(layout):
            return layout
        if isinstance(layout, Concat):
            return concat([self.resolve(part) for part in layout.parts])
        return product([self.resolve(factor) for factor in layout.factors])

    def settled(self) -> Callable[[Layout], Layout]:
        """`resolve` for when all is learnt: it remembers what it said."""
        known: dict[int, tuple[Layout, Layout]] = {}  # (with the layout itself, so that nothing else gets its id)

        def resolve(layout: Layout) -> Layout:
            found = known.get(id(layout))
            if found is None:
                known[id(layout)] = found = layout, self.resolve(layout)
            return found[1]

        return resolve

    def _resolve_width(self, width: Width) -> Layout:
        # A loop, not a recursion: a long residual stream binds one width to the next a thousand times.
        passed: list[int] = []
        found: Layout = width
        while isinstance(found, Width) and found.id in self._bound:
            passed.append(found.id)
            found = self._bound[found.id]
        if isinstance(found, (Concat, Product)):
            found = self._resolve_deep(passed[-1], found)
        for identity in passed:
            self._bound[identity] = found
        return found

    def _resolve_deep(self, identity: int, bound: Layout) -> Layout:
        """A structure that a width is bound to, resolved from its innermost bindings outwards."""
        waiting = [(identity, bound)]
        while waiting:
            identity, bound = waiting[-1]
            inner = [leaf.id for leaf in leaves(bound) if leaf.id in self._bound]
            unsettled = [name for name in inner if self._has_bound_leaf(self._bound[name])]
            if unsettled:
                waiting.extend((name, self._bound[name]) for name in dict.fromkeys(unsettled))
            else:
                self._bound[identity] = bound = self._substituted(bound) if inner else bound
                waiting.pop()
        return bound

    def _has_bound_leaf(self, layout: Layout) -> bool:
        bound = self._bound
        return any(leaf.id in bound for leaf in leaves(layout))

    def _substituted(self, layout: Layout) -> Layout:
        """A layout whose widths' bindings are resolved, with these put in."""
        if isinstance(layout, Width):
            return self._bound.get(layout.id, layout)
        if isinstance(layout, Concat):
            return concat([self._substituted(part) for part in layout.parts])
        if isinstance(layout, Product):
            return product([self._substituted(factor) for factor in layout.factors])
        return layout

    def frozen(self, width: Width) -> str | None:
        """Why an unbound width may not change; None if it may."""
        return self._frozen.get(width.id)

    def hint(self, width: Width) -> str | None:
        """What a width that came from a factoring may be called (`heads`)."""
        return self._hint.get(width.id)

    # -- learning --------------------------------------------------------------------------------

    def width(self, size: int, *, frozen: str | None = None, hint: str | None = None) -> Width:
        """A new width about which nothing is known yet."""
        made = Width(self._next, size)
        self._next += 1
        if size == 0:
            frozen = frozen or "it has no units"
        if frozen is not None:
            self._frozen[made.id] = frozen
        if hint is not None:
            self._hint[made.id] = hint
        return made

    def freeze(self, layout: Layout, why: str) -> None:
        """No width of this layout may change; the first reason given is the one kept."""
        for leaf in leaves(self.resolve(layout)):
            self._frozen.setdefault(leaf.id, why or "it meets an axis of a literal size")

    def fix(self, layout: Layout, why: str) -> None:
        """These indices are data: an axis of which nothing else is known becomes a literal size."""
        layout = self.resolve(layout)
        if isinstance(layout, Width):
            self._bound[layout.id] = Fixed(layout.size, why)
        else:
            self.freeze(layout, why)

    def unify(self, left: Layout, right: Layout) -> None:
        """Make two axes one: from now on they hold the same units in the same order.

        Where they have no common refinement, both are frozen with the reason. Raises SizeMismatch.
        """
        left, right = self.resolve(left), self.resolve(right)
        if left == right:
            return
        waiting = [(left, right)]
        steps = _MOST_STEPS * (2 + len(leaves(left)) + len(leaves(right)))
        while waiting:
            one, other = waiting.pop()
            steps -= 1
            if steps < 0:
                self.freeze(left, _NO_END)
                self.freeze(right, _NO_END)
                return
            waiting.extend(reversed(self._meet(self.resolve(one), self.resolve(other))))

    def _meet(self, left: Layout, right: Layout) -> list[tuple[Layout, Layout]]:
        """One step of unification: the pairs of parts that are to be unified in turn."""
        if left.size != right.size:
            raise SizeMismatch(left, right)
        if left == right:
            return []
        if isinstance(left, Fixed) or isinstance(right, Fixed):
            fixed, other = (left, right) if isinstance(left, Fixed) else (right, left)
            assert isinstance(fixed, Fixed)
            self.freeze(other, fixed.why)
        elif isinstance(left, Width):
            self._bind(left, right)
        elif isinstance(right, Width):
            self._bind(right, left)
        else:
            return self._align(left, right)
        return []

    def cut(self, layout: Layout, at: Sequence[int]) -> tuple[Layout, ...]:
        """The pieces of an axis between the given positions (ascending, exclusive of 0 and the end).

        A width that is cut becomes two. Raises CannotAlign where a cut falls inside a grid's row.
        """
        rest, done, pieces = self.resolve(layout), 0, []
        for position in at:
            piece, rest = self._cut_once(rest, position - done)
            pieces.append(piece)
            done = position
        pieces.append(rest)
        return tuple(self.resolve(piece) for piece in pieces)

    def factor(
        self, layout: Layout, sizes: Sequence[int], hints: Sequence[str | None] | None = None
    ) -> tuple[Layout, ...]:
        """Read an axis as a row-major grid of the given sizes, and return the grid's axes.

        A width that is regrouped becomes a Product of new ones. Raises CannotAlign.
        """
        hints = hints or [None] * len(sizes)
        rest, factors = self.resolve(layout), []
        for size, hint in zip(reversed(sizes[1:]), reversed(hints[1:]), strict=True):
            rest, inner = self._divide(rest, size, hint)
            factors.append(inner)
        if sizes and rest.size != sizes[0]:
            raise CannotAlign(f"{layout.size} indices are no grid of {tuple(sizes)}")
        rest = self.resolve(rest)
        if isinstance(rest, Width) and hints and hints[0] is not None:
            self._hint.setdefault(rest.id, hints[0])
        return tuple(self.resolve(part) for part in (rest, *reversed(factors)))

    # -- how -------------------------------------------------------------------------------------

    def _bind(self, width: Width, layout: Layout) -> None:
        if any(leaf.id == width.id for leaf in leaves(layout)):
            self.freeze(layout, "it would have to equal a rearrangement of itself")
            return
        self._bound[width.id] = layout
        if width.id in self._frozen:
            self.freeze(layout, self._frozen[width.id])
        if isinstance(layout, Width) and width.id in self._hint:
            self._hint.setdefault(layout.id, self._hint[width.id])

    def _align(self, left: Layout, right: Layout) -> list[tuple[Layout, Layout]]:
        """The parts of two structures at their common refinement; both are frozen where there is none."""
        try:
            if isinstance(left, Concat) or isinstance(right, Concat):
                cuts = sorted({*_cuts(left), *_cuts(right)})
                return list(zip(self.cut(left, cuts), self.cut(right, cuts), strict=True))
            assert isinstance(left, Product) and isinstance(right, Product)
            return list(zip(*self._common_factors(left, right), strict=True))
        except CannotAlign as clash:
            self.freeze(left, str(clash))
            self.freeze(right, str(clash))
            return []

    def _common_factors(self, left: Product, right: Product) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
        if [factor.size for factor in left.factors] == [factor.size for factor in right.factors]:
            return left.factors, right.factors
        one, other = self._without_ones(left), self._without_ones(right)
        if not (isinstance(one, Product) and isinstance(other, Product)):
            return (one,), (other,)
        sizes = _common_grid(one, other)
        return self.factor(one, sizes), self.factor(other, sizes)

    def _without_ones(self, layout: Layout) -> Layout:
        """The layout less its factors of one unit, which freeze: a regrouping does not say where they go."""
        if isinstance(layout, Width) and layout.size == 1:
            self.freeze(layout, "a single unit in an axis that is regrouped")
            return Fixed(1)
        if isinstance(layout, Product):
            return product([self._without_ones(factor) for factor in layout.factors])
        return layout

    def _cut_once(self, layout: Layout, at: int) -> tuple[Layout, Layout]:
        layout = self.resolve(layout)
        if at == 0:
            return Fixed(0), layout
        if at == layout.size:
            return layout, Fixed(0)
        if isinstance(layout, Fixed):
            return Fixed(at, layout.why), Fixed(layout.size - at, layout.why)
        if isinstance(layout, Width):
            pieces = self.width(at), self.width(layout.size - at)
            self._bind(layout, Concat(pieces))
            return pieces
        if isinstance(layout, Concat):
            return self._cut_concat(layout, at)
        outer, inner = layout.factors[0], layout.factors[1:]
        row = layout.size // outer.size if outer.size else 0
        if row == 0 or at % row:
            raise CannotAlign(
                f"a cut at {at} of {layout.size} falls inside a row of {row}; "
                f"this axis can be cut only at multiples of {row}"
            )
        first, second = self._cut_once(outer, at // row)
        return product([first, *inner]), product([second, *inner])

    def _cut_concat(self, layout: Concat, at: int) -> tuple[Layout, Layout]:
        before: list[Layout] = []
        for position, part in enumerate(layout.parts):
            if at < part.size:
                first, second = self._cut_once(part, at)
                return concat([*before, first]), concat([second, *layout.parts[position + 1 :]])
            before.append(part)
            at -= part.size
            if at == 0:
                return concat(before), concat(layout.parts[position + 1 :])
        raise AssertionError("a cut past the end")

    def _divide(self, layout: Layout, inner: int, hint: str | None) -> tuple[Layout, Layout]:
        """Read an axis as (outer inner) for an inner factor of the given size."""
        layout = self._without_ones(self.resolve(layout))
        if inner == 1:
            return layout, Fixed(1)
        if inner == layout.size:
            if isinstance(layout, Width) and hint is not None:
                self._hint.setdefault(layout.id, hint)
            return Fixed(1), layout
        if inner == 0 or layout.size % inner:
            raise CannotAlign(f"{layout.size} indices are no rows of {inner}")
        if isinstance(layout, Fixed):
            return Fixed(layout.size // inner, layout.why), Fixed(inner, layout.why)
        if isinstance(layout, Width):
            pieces = self.width(layout.size // inner), self.width(inner, hint=hint)
            self._bind(layout, Product(pieces))
            return pieces
        if isinstance(layout, Concat):
            return self._divide_concat(layout, inner, hint)
        return self._divide_product(layout, inner, hint)

    def _divide_concat(self, layout: Concat, inner: int, hint: str | None) -> tuple[Layout, Layout]:
        outers: list[Layout] = []
        rows: list[Layout] = []
        for part in layout.parts:
            if part.size % inner:
                raise CannotAlign(
                    f"rows of {inner} straddle the parts of a concatenation "
                    f"({' + '.join(str(piece.size) for piece in layout.parts)})"
                )
            outer, row = self._divide(part, inner, hint)
            outers.append(outer)
            rows.append(row)
        for row in rows[1:]:
            self.unify(rows[0], row)
        return concat(outers), self.resolve(rows[0])

    def _divide_product(self, layout: Product, inner: int, hint: str | None) -> tuple[Layout, Layout]:
        last = layout.factors[-1]
        rest = product(layout.factors[:-1])
        if last.size == inner:
            return rest, last
        if inner % last.size == 0:
            outer, middle = self._divide(rest, inner // last.size, hint)
            return outer, product([middle, last])
        if last.size % inner == 0:
            middle, row = self._divide(last, inner, hint)
            return product([rest, middle]), row
        raise CannotAlign(
            f"rows of {inner} and rows of {last.size} have no common grid "
            f"in {' x '.join(str(factor.size) for factor in layout.factors)}"
        )


def _cuts(layout: Layout) -> list[int]:
    """Where the parts of a concatenation meet."""
    if not isinstance(layout, Concat):
        return []
    sizes = [part.size for part in layout.parts]
    return [sum(sizes[:count]) for count in range(1, len(sizes))]


def _common_grid(left: Product, right: Product) -> list[int]:
    """The coarsest grid that refines two grids of one size. Raises CannotAlign."""
    rows: set[int] = {1, left.size}
    for grid in (left, right):
        for count in range(1, len(grid.factors)):
            rows.add(math.prod(factor.size for factor in grid.factors[count:]))
    ordered = sorted(rows, reverse=True)
    sizes = []
    for larger, smaller in itertools.pairwise(ordered):
        if smaller == 0 or larger % smaller:
            raise CannotAlign(f"rows of {larger} and rows of {smaller} have no common grid in an axis of {left.size}")
        sizes.append(larger // smaller)
    return sizes
