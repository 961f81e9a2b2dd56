"""What an operation is: its layout rule, its settings and parameters, and how to run it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.rule import Context, RuleFunction, Value

if TYPE_CHECKING:
    import torch

    from netgrow_cli.topology.intervals import Interval
    from netgrow_cli.topology.rows import Rows

REQUIRED: Any = object()

Start = Literal["random", "zero", "one", "quarter", "mean"]
"""What a fresh unit's entry of a parameter starts as (but zero along an axis that consumes); mean: of the old ones."""

Fresh = Literal["mean", "zero", "product", "normalises", "none"]
"""What is known of the output at a fresh unit, from what is known at the inputs.

mean: linear, the same for every unit: units that carry the mean of the old ones still do, zeros stay zero.
zero: f(0) = 0. product: zero if any operand is. normalises: the mean comes out zero. none: nothing.
"""

Multiples = Literal["any", "positive", "odd", "none"]
"""For which c a unit comes out c times another where it is so at the operands, and in what the operation makes it of.

any: all. positive: c > 0. odd: c = -1. none: where the two are equal only. What the operation makes a unit of are its
rows and biases (see `Param.grows`); what only scales it, a gain or a slope, must be equal.
"""


@frozen
class Param:
    """A parameter of an operation: its name, and what fresh units start with.

    A `#` in the name stands for a number: there are as many of these parameters as the checkpoint has.
    inside: it reads what the operation makes itself, not an operand.
    grows: though there is one value per unit, it is what a unit is made of and no factor: a unit that comes out c times
        another has it c times as large.
    """

    name: str
    start: Start = "random"
    optional: bool = False
    inside: bool = False
    grows: bool = False

    @property
    def pattern(self) -> str:
        """The names that it goes by, as a regular expression."""
        return self.name.replace("#", "[0-9]{1,6}")

    @property
    def numbered(self) -> bool:
        """Whether there may be several of it."""
        return "#" in self.name

    def is_called(self, name: str) -> bool:
        """Whether a parameter of that name is this one, or one of these."""
        return re.fullmatch(self.pattern, name) is not None if self.numbered else name == self.name


@frozen
class Attr:
    """A setting of an operation: its default, and the types it takes."""

    default: Any
    types: tuple[type, ...]


@frozen
class Call:
    """One run of an operation on real tensors.

    torch: None where numpy computes; operands and parameters are arrays then.
    outputs: the solved layouts of the results, for operations whose result's shape follows from them.
    unit_axis: the axis of the first operand that holds the units. dtype: what floating numbers are computed in.
    """

    torch: Any
    node: Node
    inputs: Sequence[torch.Tensor]
    params: Mapping[str, torch.Tensor]
    outputs: Sequence[Value]
    unit_axis: int
    attrs: Mapping[str, Any]
    dtype: Any = None

    @property
    def functional(self) -> Any:
        """`torch.nn.functional`."""
        return self.torch.nn.functional

    @property
    def np(self) -> Any:
        """numpy, which is imported where something is computed only."""
        import numpy

        return numpy

    def shape(self, output: int = 0) -> tuple[int, ...]:
        """The shape that an output must have."""
        return self.outputs[output].shape


@frozen
class Bounding:
    """One operation whose results are to be bounded.

    call: without operands; floating parameters in their own dtype. run: the operation. operands: bounds of what it
    reads. unsized: whether an operand has an axis that may have any size (`time`), which is run at one of them here.
    """

    call: Call
    run: Callable[[Call], Any]
    operands: Sequence[Interval]
    unsized: bool = False

    def at(self, *inputs: Any, **params: Any) -> Any:
        """The operation on numbers, with these parameters alone."""
        return self.run(dataclasses.replace(self.call, inputs=inputs, params=params))


Bounds = Callable[[Bounding], "Interval | tuple[Interval, ...]"]
"""What is known of an operation's results from bounds of its operands. It holds for any size of an axis without one."""


@frozen
class Op:
    """An operation: everything netgrow knows of it.

    inputs: how many operands it takes, (least, most); most None for any number.
    fresh: see `Fresh`; a function of the node where it depends on the settings.
    multiples: see `Multiples`; a function where it depends on the settings, or on which operands hold the units.
    multiple: it has several outputs, `name[0]`, `name[1]`; main_output: the name alone means the first of them.
    inside: for an operation that reads what it makes itself (recurrent layers), what that is, by those parameters
        that are `inside`, the units on its last axis. It is no linear function of what it reads, but keeps zeros.
    derives: the weight that it multiplies by is computed from its parameters, so that a unit is no mean and no multiple
        of others where their rows are.
    by_rows: as `run`, with a large weight of two axes a few rows at a time; the call is without it.
    numpy, numpy_by_rows: the same with numpy, for what proofs in pieces meet most often; None where it takes torch.
    bounds: what is known of its results where bounds of its operands are known; None is nothing. See `ops.bounds`.
    bounds_inside: likewise of `inside`.
    """

    name: str
    rule: RuleFunction
    run: Callable[[Call], Any]
    params: tuple[Param, ...] = ()
    attrs: Mapping[str, Attr] = dataclasses.field(default_factory=dict)
    inputs: tuple[int, int | None] = (1, 1)
    fresh: Fresh = "none"
    multiples: Multiples | Callable[[Node, Sequence[bool]], Multiples] = "none"
    consumes_axis: int | None = None
    multiple: bool = False
    main_output: bool = False
    inside: Callable[[Call], Mapping[str, Any]] | None = None
    derives: bool = False
    by_rows: Callable[[Call, Rows], Any] | None = None
    numpy: Callable[[Call], Any] | None = None
    numpy_by_rows: Callable[[Call, Rows], Any] | None = None
    bounds: Bounds | None = None
    bounds_inside: Callable[[Bounding], Mapping[str, Interval]] | None = None
    doc: str = ""

    def param(self, name: str) -> Param | None:
        """The parameter that goes by that name."""
        return next((param for param in self.params if param.is_called(name)), None)

    def multiples_of(self, node: Node, held: Sequence[bool]) -> Multiples:
        """For which factors a node keeps units multiples of each other. held: which operands hold these units."""
        return self.multiples(node, held) if callable(self.multiples) else self.multiples

    def attr(self, node: Node, name: str) -> Any:
        """A setting of a node, or its default."""
        return node.attrs.get(name, self.attrs[name].default)

    def all_attrs(self, node: Node) -> dict[str, Any]:
        """All settings of a node."""
        return {name: self.attr(node, name) for name in self.attrs}


INT = (int,)
INTS = (int, list, tuple)
NUMBER = (int, float)
BOOL = (bool,)
TEXT = (str,)


def axis_in(context: Context, stated: int, rank: int, name: str) -> int:
    """A stated axis counted from 0, checked against the number of axes."""
    if not -rank <= stated < rank:
        shape = list(context.inputs[0].shape)
        context.fail(f"{name}: {stated} is no axis of its input {shape}", f"attr:{name}")
    return stated % rank


def axes_in(context: Context, stated: Any, count: int | None = None) -> list[int]:
    """The axes of the setting `axes` counted from 0, checked: each once, as many as count says."""
    rank, items = len(context.inputs[0].axes), list(stated) if isinstance(stated, (list, tuple)) else [stated]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        context.fail(f"axes: {stated!r} should be numbers", "attr:axes")
    axes = [axis_in(context, item, rank, "axes") for item in items]
    if len(set(axes)) != len(axes) or (count is not None and len(axes) != count):
        amount = "each once" if count is None else f"{count} of them, each once"
        context.fail(
            f"axes: {stated!r} should be axes of its input {list(context.inputs[0].shape)}, {amount}", "attr:axes"
        )
    return axes


def spatial(context: Context, name: str, count: int, least: int) -> tuple[int, ...]:
    """A setting that is one number for all spatial axes or one for each, checked."""
    stated = context.attr(name)
    items = list(stated) if isinstance(stated, (list, tuple)) else [stated]
    wrong = [item for item in items if not isinstance(item, int) or isinstance(item, bool) or item < least]
    if wrong or len(items) not in (1, count):
        amount = f"one number, or {count}," if count > 1 else "one number"
        context.fail(f"{name}: {stated!r} should be {amount} from {least} up", f"attr:{name}")
    return several(items, count)


def several(value: Any, count: int) -> tuple[int, ...]:
    """A setting that is one number for all spatial axes, or one for each."""
    if isinstance(value, (list, tuple)):
        return tuple(int(item) for item in value) * (count if len(value) == 1 else 1)
    return (int(value),) * count
