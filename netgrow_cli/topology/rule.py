"""Layout rules: what an operation says about the axes it touches.

A rule is a line of notation wherever it can be:

    conv2d   b (g i) x y, (g o) i kx ky, (g o)? -> b (g o) x' y'

Operands are separated by commas, inputs first, then parameters; `?` marks one that may be absent, `...`
stands for any axes, `(g i)` is an axis read as a grid, `x'` a size that the operation computes. A letter that
stands in several places is one layout there. The **roles** follow: a letter of a parameter that is in the
output and not in the inputs is *produced*; in the inputs and not in the output, *consumed*; in both, *per
unit*; in neither, it is data (kernel taps, rows of a table) and frozen.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import CannotAlign, Fixed, Layout, Layouts, SizeMismatch, product


class Role(enum.Enum):
    """What an axis of a parameter does with the units it is indexed by."""

    PRODUCES = "produces"
    CONSUMES = "consumes"
    PER_UNIT = "per unit"
    DATA = "data"


@frozen
class Value:
    """An activation: the layout of each axis, and which axis holds the units (channels, features)."""

    axes: tuple[Layout, ...]
    unit_axis: int
    integer: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(axis.size for axis in self.axes)


class Context(Protocol):
    """What a rule sees of the node it is applied to, and the ways to say what it learnt.

    read: which of the node's outputs something reads.
    """

    node: Node
    layouts: Layouts
    inputs: Sequence[Value]
    params: Mapping[str, tuple[Layout, ...]]
    read: frozenset[int]

    def attr(self, name: str) -> Any:
        """A setting of the operation, its default where the spec is silent."""

    def size(self, name: str | int) -> int:
        """A size given as a number or as one of the spec's `dims`."""

    def is_integer(self, param: str) -> bool:
        """Whether a parameter holds integers (an index table) or truth values."""

    def use(self, param: str, axis: int, parts: Sequence[tuple[Layout, Role]]) -> None:
        """Record what one axis of a parameter does; the parts are the factors of the axis."""

    def effect(self, kind: str, layout: Layout, axis: int) -> None:
        """Record that the operation sees all of a layout at once (see `surgery.effects`)."""

    def site(self, what: str, span: Layout, lead: Sequence[Layout] = (), *, in_code: bool = True) -> None:
        """Record a number that states the size of `span`, or the range that it takes behind `lead`."""

    def tie(self, pieces: Sequence[Layout], why: str) -> None:
        """Record that code computes these from one number, so that their sizes stay equal."""

    def fail(self, message: str, what: str = "layer") -> NoReturn:
        """Raise a SpecError that names file, line and layer."""


_REST = ("...",)
"""The pattern of any axes."""

RuleFunction = Callable[[Context], "tuple[Value, ...]"]
Sizes = Callable[[Context], Mapping[str, int]]


def _nothing(_: Context) -> Mapping[str, int]:
    return {}


@frozen
class Operand:
    """One operand of a rule: its axes (a tuple of letters each, or an ellipsis), and whether it may lack."""

    axes: tuple[tuple[str, ...], ...]
    optional: bool


def parse_rule(text: str) -> tuple[tuple[Operand, ...], Operand]:
    """The operands and the output of a line of notation."""
    left, _, right = text.partition("->")
    return tuple(_operand(part) for part in left.split(",")), _operand(right)


def _operand(text: str) -> Operand:
    words = text.replace("(", " ( ").replace(")", " ) ").strip()
    optional = words.endswith("?")
    axes: list[tuple[str, ...]] = []
    group: list[str] | None = None
    for word in words.rstrip("? ").split():
        if word == "(":
            group = []
        elif word == ")":
            axes.append(tuple(group or ()))
            group = None
        elif group is not None:
            group.append(word)
        else:
            axes.append((word,))
    return Operand(tuple(axes), optional)


def notation(
    text: str,
    params: Sequence[str] = (),
    *,
    sizes: Sizes = _nothing,
    computed: Sizes = _nothing,
    effects: Mapping[str, str] | None = None,
    sites: Mapping[str, str] | None = None,
    scaled: Mapping[str, Collection[str]] | None = None,
    data: str = "its indices are data, not units",
) -> RuleFunction:
    """A rule from a line of notation.

    params: the parameters' names, for the operands that stand last.
    sizes: sizes of letters that a grid needs (`g`); computed: sizes of the primed letters.
    effects: letters that the operation sees as a whole, and the kind of effect.
    sites: letters whose size the model's code states, and what it is called there (`groups`).
    scaled: by parameter, letters that another parameter makes or reads units by, which this one gives a direction only.
    data: why letters that stand in a parameter alone are frozen.
    """
    operands, output = parse_rule(text)
    count = len(operands) - len(params)
    in_inputs = {letter for operand in operands[:count] for axis in operand.axes for letter in axis}
    in_output = {letter for axis in output.axes for letter in axis}
    # An axis that one operand has, no other and no output: the operation mixes what stands side by side on it.
    everywhere = [letter for operand in (*operands, output) for axis in operand.axes for letter in axis]
    mixed = sorted(letter for letter in in_inputs if everywhere.count(letter) == 1 and letter != "...")

    def role(letter: str) -> Role:
        if letter in in_output:
            return Role.PER_UNIT if letter in in_inputs else Role.PRODUCES
        return Role.CONSUMES if letter in in_inputs else Role.DATA

    unit_letter = _unit_letter(output, role, operands[count:])

    def rule(context: Context) -> tuple[Value, ...]:
        match = _Matcher(context, dict(sizes(context)))
        for position, operand in enumerate(operands[:count]):
            match.operand(operand, context.inputs[position].axes, f"input {position + 1}")
        for name, operand in zip(params, operands[count:], strict=True):
            if name in context.params:
                match.operand(operand, context.params[name], name)
        for name, operand in zip(params, operands[count:], strict=True):
            if name in context.params:
                directions = (scaled or {}).get(name, ())
                own = functools.partial(_role_in, directions, role) if directions else role
                _record_uses(context, match, name, operand, own, data)
        for letter in mixed:
            if letter not in (effects or {}):
                why = f"positions, which {context.node.op} {context.node.name} mixes"
                context.layouts.freeze(match.letters[letter], why)
        for letter, kind in (effects or {}).items():
            seen = operands[0] if letter in in_inputs else output
            context.effect(kind, match.letters[letter], _position_of(letter, seen, len(context.inputs[0].axes)))
        for letter, what in (sites or {}).items():
            context.site(what, match.letters[letter])
        axes = match.output(output, computed(context))
        if unit_letter is None:
            return (Value(axes, context.inputs[0].unit_axis if context.inputs else len(axes) - 1),)
        return (Value(axes, _position_of(unit_letter, output, len(axes))),)

    return rule


class _Matcher:
    """The letters of one application of a rule, and the layout each stands for."""

    def __init__(self, context: Context, sizes: dict[str, int]) -> None:
        self.context = context
        self.sizes = sizes
        self.letters: dict[str, Layout] = {}
        self.rest: tuple[Layout, ...] = ()

    def operand(self, operand: Operand, axes: Sequence[Layout], what: str) -> None:
        """Match the axes of one operand against its pattern."""
        any_more = _REST in operand.axes
        named = len(operand.axes) - any_more
        if len(axes) < named or (not any_more and len(axes) != named):
            shape = [axis.size for axis in axes]
            self.context.fail(
                f"{what} has {len(axes)} axes {shape}; {self.context.node.op} expects {named}"
                f"{' or more' if any_more else ''}"
            )
        for pattern, axis in zip(_spread(operand.axes, len(axes)), axes, strict=True):
            if pattern is not None:
                self._axis(pattern, axis, what)
        if any_more:
            start = operand.axes.index(_REST)
            self.rest = tuple(axes[start : start + len(axes) - named])

    def output(self, operand: Operand, computed: Mapping[str, int]) -> tuple[Layout, ...]:
        """The axes of the output."""
        axes: list[Layout] = []
        for pattern in operand.axes:
            if pattern == _REST:
                axes.extend(self.rest)
            elif pattern[0] in computed:
                axes.append(Fixed(computed[pattern[0]], "positions"))
            else:
                axes.append(self.context.layouts.resolve(product([self.letters[letter] for letter in pattern])))
        return tuple(axes)

    def _axis(self, pattern: tuple[str, ...], axis: Layout, what: str) -> None:
        if len(pattern) == 1:
            self._letter(pattern[0], axis, what)
            return
        sizes = self._grid_sizes(pattern, axis.size, what)
        try:
            factors = self.context.layouts.factor(axis, sizes, pattern)
        except CannotAlign as clash:
            self.context.layouts.freeze(axis, f"{self.context.node.op} {self.context.node.name}: {clash}")
            factors = tuple(Fixed(size, str(clash)) for size in sizes)
        for letter, factor in zip(pattern, factors, strict=True):
            self._letter(letter, factor, what)

    def _letter(self, letter: str, layout: Layout, what: str) -> None:
        known = self.letters.setdefault(letter, layout)
        self.sizes.setdefault(letter, layout.size)
        try:
            self.context.layouts.unify(known, layout)
        except SizeMismatch:
            self.context.fail(
                f"{what} has {layout.size} where {known.size} are expected (axis {letter!r} of {self.context.node.op})"
            )

    def _grid_sizes(self, pattern: tuple[str, ...], size: int, what: str) -> list[int]:
        unknown = [letter for letter in pattern if letter not in self.sizes]
        known = math.prod(self.sizes[letter] for letter in pattern if letter in self.sizes)
        if len(unknown) > 1 or known == 0 or size % known or (not unknown and known != size):
            self.context.fail(f"{what} has {size}, which is no multiple of {known}")
        return [self.sizes.get(letter, size // known) for letter in pattern]


@functools.cache
def _spread(axes: tuple[tuple[str, ...], ...], count: int) -> tuple[tuple[str, ...] | None, ...]:
    """The pattern of each of `count` axes; None for those that the ellipsis covers."""
    spread: list[tuple[str, ...] | None] = []
    for axis in axes:
        if axis == _REST:
            spread.extend([None] * (count - len(axes) + 1))
        else:
            spread.append(axis)
    return tuple(spread)


def _position_of(letter: str, operand: Operand, count: int) -> int:
    return next(n for n, axis in enumerate(_spread(operand.axes, count)) if axis and letter in axis)


def _role_in(directions: Collection[str], role: Callable[[str], Role], letter: str) -> Role:
    """The role of a letter in a parameter that gives some letters' units a direction only."""
    return Role.PER_UNIT if letter in directions else role(letter)


def _record_uses(
    context: Context, match: _Matcher, name: str, operand: Operand, role: Callable[[str], Role], data: str
) -> None:
    axes = context.params[name]
    for position, pattern in enumerate(_spread(operand.axes, len(axes))):
        letters = pattern or ()
        for letter in letters:
            if role(letter) is Role.DATA:
                context.layouts.fix(match.letters[letter], data)
            elif isinstance(known := context.layouts.resolve(match.letters[letter]), Fixed) and len(letters) == 1:
                context.layouts.fix(axes[position], known.why)
        parts = [(match.letters[letter], role(letter)) for letter in letters]
        if not letters:
            context.layouts.fix(axes[position], data)
            parts = [(axes[position], Role.DATA)]
        context.use(name, position, parts)


def _unit_letter(output: Operand, role: Callable[[str], Role], params: Sequence[Operand]) -> str | None:
    """The letter, of an axis of the output, that parameters produce or scale; the input's units where there is none."""
    in_params = {letter for operand in params for axis in operand.axes for letter in axis}
    for wanted in (Role.PRODUCES, Role.PER_UNIT):
        for letter in (letter for axis in output.axes if axis != _REST for letter in axis):
            if letter in in_params and role(letter) is wanted:
                return letter
    return None


def spec_error(node: Node, message: str, what: str = "layer") -> SpecError:
    """A SpecError that names file, line and layer."""
    mark = node.marks.get(what) or node.mark
    where = f"{mark}: " if mark else ""
    return SpecError(f"{where}layer {node.name!r} ({node.op}): {message}")
