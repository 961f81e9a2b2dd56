"""The algebra of layouts against what numpy does to real arrays.

The main test draws a small program on arrays (cut, factor, merge, transpose, concatenate, outer product, add),
follows it with layouts, then changes the units of every width that may change, runs the program again on the
changed leaves with the sizes that the layouts say, and compares every intermediate array with the old one
gathered by `index_map` along every axis. Entries of fresh units are NaN in the leaves, and must be NaN exactly
where `index_map` says -1.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netgrow_cli.topology.layout import (
    CannotAlign,
    Concat,
    Fixed,
    Layout,
    Layouts,
    Product,
    SizeMismatch,
    Width,
    concat,
    index_map,
    leaves,
    new_size,
    occurrences,
    product,
)
from netgrow_cli.topology.notation import NotationError, axis_text, layout_text, parse_axes

SIZES = (1, 2, 3, 4, 6, 8, 12)
MOST = 3000
KINDS = ("cut", "cut", "factor", "factor", "merge", "transpose", "concat", "outer", "sum", "sum")


# -- programs on arrays, followed by layouts ---------------------------------------------------------


@dataclasses.dataclass
class Step:
    """One operation: what it reads, its settings, and where its results are among the program's values."""

    kind: str
    reads: tuple[int, ...]
    axis: int = 0
    order: tuple[int, ...] = ()
    results: tuple[int, ...] = ()


class Program:
    """Values (arrays with a layout for each axis) and the steps that made them."""

    def __init__(self, draw) -> None:
        self.draw = draw
        self.layouts = Layouts()
        self.axes: list[tuple[Layout, ...]] = []
        self.arrays: list[np.ndarray] = []
        self.steps: list[Step] = []
        self.random = np.random.default_rng(0)

    def pick(self, options):
        return self.draw(st.sampled_from(list(options)))

    def value(self) -> int:
        return self.pick(range(len(self.arrays)))

    def shape(self, value: int) -> tuple[int, ...]:
        return self.arrays[value].shape

    def add(self, step: Step, made: list[tuple[tuple[Layout, ...], np.ndarray]]) -> None:
        start = len(self.arrays)
        for axes, array in made:
            assert tuple(axis.size for axis in axes) == array.shape
            self.axes.append(axes)
            self.arrays.append(array)
        step.results = tuple(range(start, len(self.arrays)))
        self.steps.append(step)

    def leaf(self) -> None:
        rank = self.pick((1, 1, 2, 3))
        axes: list[Layout] = []
        for _ in range(rank):
            size = self.pick(SIZES)
            fixed = self.pick((False, False, False, True))
            axes.append(Fixed(size, "positions") if fixed else self.layouts.width(size))
        shape = tuple(axis.size for axis in axes)
        self.add(Step("leaf", ()), [(tuple(axes), self.random.normal(size=shape))])

    def cut(self) -> None:
        value = self.value()
        wide = [axis for axis, size in enumerate(self.shape(value)) if size > 1]
        if not wide:
            return
        axis = self.pick(wide)
        layout, size = self.axes[value][axis], self.shape(value)[axis]
        at = sorted(self.draw(st.sets(st.integers(1, size - 1), min_size=1, max_size=2)))
        try:
            pieces = self.layouts.cut(layout, at)
        except CannotAlign as clash:
            self.layouts.freeze(layout, str(clash))
            pieces = tuple(Fixed(b - a) for a, b in zip([0, *at], [*at, size], strict=True))
        arrays = np.split(self.arrays[value], at, axis)
        made = [(replaced(self.axes[value], axis, (piece,)), a) for piece, a in zip(pieces, arrays, strict=True)]
        self.add(Step("cut", (value,), axis), made)

    def factor(self) -> None:
        value = self.value()
        axis = self.pick(range(len(self.shape(value))))
        size = self.shape(value)[axis]
        inner = self.pick([n for n in range(1, size + 1) if size % n == 0])
        middle = self.pick([n for n in range(1, size // inner + 1) if (size // inner) % n == 0])
        sizes = (size // inner // middle, middle, inner)
        if self.pick((True, False)):
            sizes = (size // inner, inner)
        layout = self.axes[value][axis]
        try:
            factors = self.layouts.factor(layout, sizes)
        except CannotAlign as clash:
            self.layouts.freeze(layout, str(clash))
            factors = tuple(Fixed(n) for n in sizes)
        axes = replaced(self.axes[value], axis, factors)
        array = self.arrays[value].reshape([a.size for a in axes])
        self.add(Step("reshape", (value,)), [(axes, array)])

    def merge(self) -> None:
        value = self.value()
        if len(self.shape(value)) < 2:
            return
        axis = self.pick(range(len(self.shape(value)) - 1))
        axes = self.axes[value]
        axes = (*axes[:axis], product(axes[axis : axis + 2]), *axes[axis + 2 :])
        self.add(Step("reshape", (value,)), [(axes, self.arrays[value].reshape([a.size for a in axes]))])

    def transpose(self) -> None:
        value = self.value()
        order = tuple(self.draw(st.permutations(range(len(self.shape(value))))))
        axes = tuple(self.axes[value][axis] for axis in order)
        self.add(Step("transpose", (value,), order=order), [(axes, self.arrays[value].transpose(order))])

    def concat(self) -> None:
        one = self.value()
        axis = self.pick(range(len(self.shape(one))))
        fits = [v for v, a in enumerate(self.arrays) if same_but(a.shape, self.shape(one), axis)]
        other = self.pick(fits)
        joined = concat([self.axes[one][axis], self.axes[other][axis]])
        if self.arrays[one].size + self.arrays[other].size > MOST:
            return
        for position in range(len(self.shape(one))):
            if position != axis:
                self.layouts.unify(self.axes[one][position], self.axes[other][position])
        array = np.concatenate([self.arrays[one], self.arrays[other]], axis)
        self.add(Step("concat", (one, other), axis), [(replaced(self.axes[one], axis, (joined,)), array)])

    def outer(self) -> None:
        one, other = self.value(), self.value()
        if self.arrays[one].size * self.arrays[other].size > MOST:
            return
        array = np.multiply.outer(self.arrays[one], self.arrays[other])
        self.add(Step("outer", (one, other)), [((*self.axes[one], *self.axes[other]), array)])

    def sum(self) -> None:
        one = self.value()
        other = self.pick([v for v, a in enumerate(self.arrays) if a.shape == self.shape(one)])
        for left, right in zip(self.axes[one], self.axes[other], strict=True):
            self.layouts.unify(left, right)
        self.add(Step("sum", (one, other)), [(self.axes[one], self.arrays[one] + self.arrays[other])])

    def again(self, sources: dict[int, list[int]], sizes: dict[int, int]) -> list[np.ndarray]:
        """All values of the program run on changed leaves."""
        arrays: list[np.ndarray] = []
        for step in self.steps:
            axes = [tuple(map(self.layouts.resolve, self.axes[value])) for value in step.results]
            shapes = [tuple(new_size(axis, sizes) for axis in value) for value in axes]
            read = [arrays[value] for value in step.reads]
            if step.kind == "leaf":
                arrays.append(gathered(self.arrays[step.results[0]], axes[0], sources))
            elif step.kind == "cut":
                lengths = [shape[step.axis] for shape in shapes]
                assert sum(lengths) == read[0].shape[step.axis]
                arrays.extend(np.split(read[0], np.cumsum(lengths)[:-1], step.axis))
            elif step.kind == "reshape":
                arrays.append(read[0].reshape(shapes[0]))
            elif step.kind == "transpose":
                arrays.append(read[0].transpose(step.order))
            elif step.kind == "concat":
                arrays.append(np.concatenate(read, step.axis))
            elif step.kind == "outer":
                arrays.append(np.multiply.outer(*read))
            else:
                assert read[0].shape == read[1].shape
                arrays.append(read[0] + read[1])
        return arrays


def replaced(axes: tuple[Layout, ...], axis: int, by: tuple[Layout, ...]) -> tuple[Layout, ...]:
    return (*axes[:axis], *by, *axes[axis + 1 :])


def same_but(one: tuple[int, ...], other: tuple[int, ...], axis: int) -> bool:
    return len(one) == len(other) and all(a == b for n, (a, b) in enumerate(zip(one, other, strict=True)) if n != axis)


def gathered(array: np.ndarray, axes: tuple[Layout, ...], sources: dict[int, list[int]]) -> np.ndarray:
    """The array with changed units; NaN where any is fresh."""
    for axis, layout in enumerate(axes):
        index = index_map(layout, sources)
        fresh = np.full(array.shape[axis] + 1, False)
        fresh[-1] = True
        padded = np.concatenate([array, np.full_like(np.take(array, [0], axis), np.nan)], axis)
        array = np.take(padded, index, axis)
    return array


def changes(draw, layouts: Layouts, axes: list[Layout]) -> dict[int, list[int]]:
    """New sources for some of the widths that may change: permuted, pruned, split, with fresh units."""
    widths = {leaf.id: leaf for axis in axes for leaf in leaves(axis)}
    sources = {}
    for identity, width in sorted(widths.items()):
        if layouts.frozen(width) is not None:
            continue
        kind = draw(st.sampled_from(("keep", "permute", "any")))
        if kind == "permute":
            sources[identity] = list(draw(st.permutations(range(width.size))))
        elif kind == "any":
            unit = st.integers(-1, width.size - 1)
            sources[identity] = draw(st.lists(unit, min_size=1, max_size=width.size + 2))
    return sources


def assert_normal(layout: Layout) -> None:
    """The normal form that the module promises."""
    if isinstance(layout, Concat):
        assert len(layout.parts) > 1
        for part in layout.parts:
            assert not isinstance(part, Concat) and part.size > 0
            assert_normal(part)
        for left, right in zip(layout.parts, layout.parts[1:], strict=False):
            assert not (isinstance(left, Fixed) and isinstance(right, Fixed))
    if isinstance(layout, Product):
        assert len(layout.factors) > 1 and not isinstance(layout.factors[0], Concat)
        for factor in layout.factors:
            assert not isinstance(factor, Product) and factor != Fixed(1)
            assert_normal(factor)
        for left, right in zip(layout.factors, layout.factors[1:], strict=False):
            assert not (isinstance(left, Fixed) and isinstance(right, Fixed))


def assert_occurrences(layout: Layout, sources: dict[int, list[int]], sizes: dict[int, int]) -> None:
    """`occurrences` before and after a change say the same as `index_map`."""
    index = index_map(layout, sources)
    fresh = np.zeros(len(index), dtype=bool)
    for width in {leaf.id: leaf for leaf in leaves(layout)}.values():
        before, after = occurrences(layout, width.id), occurrences(layout, width.id, sizes)
        assert len(before) == len(after) == [leaf.id for leaf in leaves(layout)].count(width.id)
        came_from = np.asarray([*sources.get(width.id, range(width.size)), -1])
        for old, new in zip(before, after, strict=True):
            assert old.shape == (layout.size,) and new.shape == index.shape
            fresh |= (new >= 0) & (came_from[new] < 0)
            kept = index >= 0
            unit = np.where(new[kept] < 0, -1, came_from[new[kept]])
            np.testing.assert_array_equal(old[index[kept]], unit)
    np.testing.assert_array_equal(fresh, index < 0)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_layouts_follow_what_numpy_does(data) -> None:
    program = Program(data.draw)
    for _ in range(data.draw(st.integers(1, 3))):
        program.leaf()
    for _ in range(data.draw(st.integers(1, 7))):
        getattr(program, program.pick(KINDS))()
    resolved = [tuple(map(program.layouts.resolve, axes)) for axes in program.axes]
    flat = [axis for axes in resolved for axis in axes]
    sources = changes(data.draw, program.layouts, flat)
    sizes = {identity: len(units) for identity, units in sources.items()}
    for value, (axes, array) in enumerate(zip(resolved, program.again(sources, sizes), strict=True)):
        for axis in axes:
            assert_normal(axis)
            assert_occurrences(axis, sources, sizes)
            assert len(index_map(axis, sources)) == new_size(axis, sizes)
        np.testing.assert_array_equal(array, gathered(program.arrays[value], axes, sources))


# -- single laws ---------------------------------------------------------------------------------------


@st.composite
def structures(draw, layouts: Layouts, size: int, depth: int = 3) -> Layout:
    """Some layout of the given size."""
    kinds = ["width", "width", "fixed"]
    divisors = [n for n in range(2, size) if size % n == 0]
    if depth and size > 1:
        kinds += ["concat"]
        kinds += ["product"] * 2 if divisors else []
    kind = draw(st.sampled_from(kinds))
    if kind == "width":
        return layouts.width(size)
    if kind == "fixed":
        return Fixed(size, "positions")
    if kind == "concat":
        at = draw(st.integers(1, size - 1))
        return concat([draw(structures(layouts, part, depth - 1)) for part in (at, size - at)])
    inner = draw(st.sampled_from(divisors))
    return product([draw(structures(layouts, part, depth - 1)) for part in (size // inner, inner)])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_unified_axes_move_alike(data) -> None:
    """After unify, every change that is allowed does the same to both axes."""
    layouts = Layouts()
    size = data.draw(st.sampled_from((1, 2, 4, 6, 8, 12, 24)))
    axes = [data.draw(structures(layouts, size)) for _ in range(3)]
    layouts.unify(axes[0], axes[1])
    layouts.unify(axes[2], axes[0])
    resolved = [layouts.resolve(axis) for axis in axes]
    sources = changes(data.draw, layouts, resolved)
    for axis in resolved:
        assert_normal(axis)
        np.testing.assert_array_equal(index_map(axis, sources), index_map(resolved[0], sources))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_unify_is_idempotent_and_resolve_is_stable(data) -> None:
    layouts = Layouts()
    size = data.draw(st.sampled_from((2, 4, 6, 12)))
    one, other = (data.draw(structures(layouts, size)) for _ in range(2))
    layouts.unify(one, other)
    before = layouts.resolve(one), layouts.resolve(other)
    assert (layouts.resolve(before[0]), layouts.resolve(before[1])) == before
    layouts.unify(one, other)
    layouts.unify(other, one)
    frozen = [layouts.frozen(leaf) is not None for axis in before for leaf in leaves(axis)]
    if not any(frozen):
        assert (layouts.resolve(one), layouts.resolve(other)) == before
        assert before[0].size == before[1].size


def aligned(layouts: Layouts, one: Layout, other: Layout) -> bool:
    layouts.unify(one, other)
    units = [*leaves(layouts.resolve(one)), *leaves(layouts.resolve(other))]
    frozen = {layouts.frozen(leaf) for leaf in units}
    assert None not in frozen or frozen == {None}, "all of what cannot be aligned is frozen, or nothing"
    return frozen == {None}


def test_two_widths_become_one() -> None:
    layouts = Layouts()
    one, other = layouts.width(8), layouts.width(8)
    layouts.unify(one, other)
    assert layouts.resolve(one) == layouts.resolve(other)


def test_a_width_that_meets_a_structure_is_that_structure() -> None:
    layouts = Layouts()
    whole, part, rest = layouts.width(8), layouts.width(5), layouts.width(3)
    layouts.unify(whole, concat([part, rest]))
    assert layouts.resolve(whole) == Concat((part, rest))


def test_concatenations_are_refined_at_all_cuts() -> None:
    layouts = Layouts()
    a, b, c, d = (layouts.width(size) for size in (3, 5, 4, 4))
    layouts.unify(concat([a, b]), concat([c, d]))
    assert [part.size for part in layouts.resolve(concat([a, b])).parts] == [3, 1, 4]
    assert layouts.resolve(concat([a, b])) == layouts.resolve(concat([c, d]))


def test_grids_are_refined_at_common_factors() -> None:
    layouts = Layouts()
    a, b, c, d = (layouts.width(size) for size in (2, 6, 4, 3))
    assert aligned(layouts, product([a, b]), product([c, d]))
    assert [factor.size for factor in layouts.resolve(product([a, b])).factors] == [2, 2, 3]


def test_grids_without_common_factors_freeze() -> None:
    layouts = Layouts()
    a, b, c, d = (layouts.width(size) for size in (3, 4, 4, 3))
    assert not aligned(layouts, product([a, b]), product([c, d]))
    assert "no common grid" in layouts.frozen(a)


def test_a_cut_inside_a_row_is_refused_and_one_between_rows_is_not() -> None:
    layouts = Layouts()
    channels = layouts.width(4)
    flat = product([channels, Fixed(9)])
    with pytest.raises(CannotAlign, match="multiples of 9"):
        layouts.cut(flat, [10])
    first, second = layouts.cut(flat, [18])
    assert first.size == second.size == 18
    assert [part.size for part in layouts.resolve(channels).parts] == [2, 2]


def test_a_width_inside_itself_freezes() -> None:
    layouts = Layouts()
    one, width = layouts.width(1), layouts.width(4)
    layouts.unify(width, product([one, width]))
    assert layouts.frozen(width) is not None and layouts.frozen(one) is not None


def test_swapped_concatenation_of_equal_parts_is_one_width() -> None:
    layouts = Layouts()
    a, b = layouts.width(4), layouts.width(4)
    layouts.unify(concat([a, b]), concat([b, a]))
    assert layouts.resolve(a) == layouts.resolve(b) and layouts.frozen(layouts.resolve(a)) is None


def test_an_axis_that_equals_its_own_shuffle_keeps_the_symmetry() -> None:
    layouts = Layouts()
    a, b = layouts.width(2), layouts.width(4)
    layouts.unify(product([a, b]), product([b, a]))
    assert len(set(leaves(layouts.resolve(product([a, b]))))) == 1


@pytest.mark.parametrize(
    "sizes", [(3, 5), (1000, 1), (1, 1000), (610, 987), (512, 768), (4096, 4095), (2**20, 2**20 - 1)]
)
def test_swapped_concatenation_of_unequal_parts_ends(sizes: tuple[int, int]) -> None:
    layouts = Layouts()
    a, b = layouts.width(sizes[0]), layouts.width(sizes[1])
    layouts.unify(concat([a, b]), concat([b, a]))
    resolved = layouts.resolve(concat([a, b]))
    assert resolved.size == sum(sizes)
    other = layouts.resolve(concat([b, a]))
    if resolved != other:
        assert all(layouts.frozen(leaf) for leaf in (*leaves(resolved), *leaves(other)))


def test_a_long_chain_of_equal_widths_needs_no_deep_stack() -> None:
    layouts = Layouts()
    widths = [layouts.width(8) for _ in range(5000)]
    for one, other in itertools.pairwise(widths):
        layouts.unify(one, other)
    assert len({layouts.resolve(width) for width in widths}) == 1


def test_a_long_chain_of_cuts_needs_no_deep_stack() -> None:
    layouts = Layouts()
    whole = layouts.width(3000)
    rest: Layout = whole
    for _ in range(2999):
        _, rest = layouts.cut(rest, [1])
    assert len(list(leaves(layouts.resolve(whole)))) == 3000


def test_sizes_that_differ_are_an_error() -> None:
    layouts = Layouts()
    with pytest.raises(SizeMismatch, match="3 against 4"):
        layouts.unify(layouts.width(3), layouts.width(4))


def test_literals_freeze_what_they_meet_and_the_first_reason_stays() -> None:
    layouts = Layouts()
    a, b = layouts.width(3), layouts.width(5)
    layouts.unify(concat([a, b]), Fixed(8, "the first"))
    layouts.freeze(a, "the second")
    assert layouts.frozen(a) == layouts.frozen(b) == "the first"


def test_a_freeze_without_a_reason_is_one() -> None:
    layouts = Layouts()
    width = layouts.width(4)
    layouts.unify(width, Fixed(4))
    assert layouts.frozen(width)


def test_frozen_widths_stay_frozen_when_they_are_cut_factored_or_unified() -> None:
    layouts = Layouts()
    width = layouts.width(12, frozen="input")
    pieces = layouts.cut(width, [4])
    factors = layouts.factor(pieces[1], [2, 4])
    other = layouts.width(4)
    layouts.unify(other, pieces[0])
    for axis in (*pieces, *factors, other):
        assert all(layouts.frozen(leaf) == "input" for leaf in leaves(layouts.resolve(axis)))


def test_axes_without_units() -> None:
    layouts = Layouts()
    empty, also, some = layouts.width(0), layouts.width(0), layouts.width(3)
    assert layouts.frozen(empty) is not None
    layouts.unify(empty, also)
    assert layouts.resolve(concat([empty, some, also])) == some
    layouts.unify(product([empty, some]), product([layouts.width(3), layouts.width(0)]))
    assert index_map(empty, {}).shape == (0,)
    assert index_map(product([some, empty]), {}).shape == (0,)
    assert concat([]).size == 0 and product([]).size == 1
    assert layouts.cut(empty, []) == (layouts.resolve(empty),)
    with pytest.raises(CannotAlign):
        layouts.factor(some, [3, 0])


def test_single_units() -> None:
    layouts = Layouts()
    one, width = layouts.width(1), layouts.width(4)
    layouts.unify(product([one, width]), layouts.width(4))
    grid = layouts.factor(product([one, width]), [2, 2])
    assert [axis.size for axis in grid] == [2, 2]
    assert layouts.frozen(one) is not None, "a regrouping does not say where a single unit went"


def test_hints_name_factors() -> None:
    layouts = Layouts()
    heads, dim = layouts.factor(layouts.width(12), [3, 4], ["heads", "head_dim"])
    assert (layouts.hint(heads), layouts.hint(dim)) == ("heads", "head_dim")
    same = layouts.width(3)
    layouts.unify(heads, same)
    assert layouts.hint(layouts.resolve(same)) == "heads"


def test_a_concatenation_in_front_of_a_grid_distributes() -> None:
    a, b = Width(0, 2), Width(1, 3)
    assert product([Concat((a, b)), Fixed(7)]) == Concat((Product((a, Fixed(7))), Product((b, Fixed(7)))))
    assert isinstance(product([Fixed(7), Concat((a, b))]), Product)


def test_equal_halves_of_a_grid_of_rows_unify() -> None:
    """`(2 (a + b))` read as rows of a: the parts are one width."""
    layouts = Layouts()
    a, b = layouts.width(3), layouts.width(3)
    outer, inner = layouts.factor(product([Fixed(2), concat([a, b])]), [4, 3])
    assert outer == Fixed(4) and layouts.resolve(a) == layouts.resolve(b) == inner


# -- notation ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_text_and_back(data) -> None:
    layouts = Layouts()
    sizes = data.draw(st.lists(st.sampled_from((1, 2, 4, 6, 12)), max_size=3))
    axes = tuple(layouts.resolve(data.draw(structures(layouts, size))) for size in sizes)
    names = {f"w{leaf.id}[0:{leaf.size}]": leaf for axis in axes for leaf in leaves(axis)}
    text = layout_text(axes, lambda width: f"w{width.id}[0:{width.size}]")
    assert parse_axes(text, names.__getitem__) == axes


WIDTHS = {name: Width(number, size) for number, (name, size) in enumerate([("a", 2), ("b", 3), ("c.d", 4)])}


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("scalar", ()),
        ("a", (WIDTHS["a"],)),
        ("a  b", (WIDTHS["a"], WIDTHS["b"])),
        ("a + b  3", (Concat((WIDTHS["a"], WIDTHS["b"])), Fixed(3))),
        ("a+b", (Concat((WIDTHS["a"], WIDTHS["b"])),)),
        ("(c.d 49)", (Product((WIDTHS["c.d"], Fixed(49))),)),
        ("(4 (a + b))", (Product((Fixed(4), Concat((WIDTHS["a"], WIDTHS["b"])))),)),
        ("(a)", (WIDTHS["a"],)),
    ],
)
def test_texts(text: str, axes: tuple[Layout, ...]) -> None:
    assert parse_axes(text, WIDTHS.__getitem__) == axes


def test_what_people_read() -> None:
    layout = Product((WIDTHS["a"], Concat((WIDTHS["b"], Fixed(1)))))
    assert axis_text(layout, lambda width: f"u{width.id}") == "(u0 (u1 + 1))"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a", "not closed"),
        ("a)", "closes nothing"),
        ("()", "empty parentheses"),
        ("a +", "found the end"),
        ("+ a", "found +"),
        ("a + + b", "found +"),
        ("(a + )", "found )"),
        ("(" * 5000, "inside each other"),
    ],
)
def test_texts_that_are_no_layouts(text: str, message: str) -> None:
    with pytest.raises(NotationError) as caught:
        parse_axes(text, WIDTHS.__getitem__)
    assert message in str(caught.value)
