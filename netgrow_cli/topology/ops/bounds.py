"""What operations do to bounds: the kinds of rules that `Op.bounds` is made of.

Each says for the numbers of a result between which numbers they lie, for all operands within their bounds. An operation
without one gives results of which nothing is known. Where an operand has an axis of any size (`unsized`), a rule
must hold for each size: what adds up along such an axis says nothing (`fixed`), or only what does not depend on it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from netgrow_cli.topology.intervals import Interval, as_real, at, inverse, minus, plus, real, summed, times, widened
from netgrow_cli.topology.ops.base import Bounding, Bounds, Call

Limit = float | None


def nothing(asked: Bounding) -> tuple[Interval, ...]:
    """Nothing is known, but that a function of what never changes never changes."""
    still = all(bool(operand.still.all()) for operand in asked.operands)
    return tuple(Interval.anything(value.shape, still) for value in asked.call.outputs)


def fixed(bounds: Bounds) -> Bounds:
    """A rule for operands that have no axis of any size."""
    return lambda asked: nothing(asked) if asked.unsized else bounds(asked)


# -- numbers moved ---------------------------------------------------------------------------------------


def moves(asked: Bounding) -> Interval | tuple[Interval, ...]:
    """Each number of the result is one of the operands'."""
    ends = [
        asked.at(*(getattr(x, end) for x in asked.operands), **asked.call.params) for end in ("low", "high", "still")
    ]
    if isinstance(ends[0], (tuple, list)):
        return tuple(Interval(*one) for one in zip(*ends, strict=True))
    return Interval(*ends)


def picks(asked: Bounding) -> Interval:
    """Each number of the result is the largest of some of the operand's: bounds are the largest of theirs."""
    (x,) = asked.operands
    moving = asked.at((~x.still).double())
    return Interval(asked.at(x.low), asked.at(x.high), moving == 0)


def picks_least(asked: Bounding) -> Interval:
    """As `picks`, for the smallest."""
    (x,) = asked.operands
    return Interval(asked.at(x.low), asked.at(x.high), asked.at(x.still.double()) == 1)


# -- functions of one number -----------------------------------------------------------------------------


def rising(least: Limit = None, most: Limit = None, *, exact: bool = False) -> Bounds:
    """A function that never falls; least, most: what it never leaves. exact: it rounds nothing."""

    def bounds(asked: Bounding) -> Interval:
        (x,) = asked.operands
        low, high = at(asked.at, x.low), at(asked.at, x.high)
        return (Interval(low, high, x.still) if exact else widened(low, high, x)).within(least, most)

    return bounds


def falling(least: Limit = None, most: Limit = None) -> Bounds:
    """A function that never rises."""

    def bounds(asked: Bounding) -> Interval:
        (x,) = asked.operands
        return widened(at(asked.at, x.high), at(asked.at, x.low), x).within(least, most)

    return bounds


def valley(place: float, bottom: float) -> Bounds:
    """A function that falls up to a place, where it is no less than `bottom`, and rises from there."""

    def bounds(asked: Bounding) -> Interval:
        (x,) = asked.operands
        torch = asked.call.torch
        low, high = at(asked.at, x.low), at(asked.at, x.high)
        near = 0.01 if place else 0.0  # (places other than zero are known to some digits)
        over = (x.low < place + near) & (x.high > place - near)
        found = widened(torch.minimum(low, high), torch.maximum(low, high), x)
        return Interval(torch.where(over, bottom, found.low), found.high, x.still)

    return bounds


def bent(asked: Bounding) -> Interval:
    """A function that only rises or only falls below zero, likewise above, and is zero at zero."""
    (x,) = asked.operands
    torch = asked.call.torch
    params = {name: real(tensor) for name, tensor in asked.call.params.items()}
    low, high = (at(lambda end: asked.at(end, **params), end) for end in (x.low, x.high))
    over = (x.low < 0) & (x.high > 0)
    found = widened(torch.minimum(low, high), torch.maximum(low, high), x)
    return Interval(
        torch.where(over, found.low.clamp(max=0.0), found.low),
        torch.where(over, found.high.clamp(min=0.0), found.high),
        x.still,
    )


def ranging(least: Limit, most: Limit) -> Bounds:
    """A result between two numbers, whatever the operand is. None: no bound."""

    def bounds(asked: Bounding) -> Interval:
        (found,) = nothing(asked)
        return found.within(least, most)

    return bounds


def threshold(asked: Bounding) -> Interval:
    """x above a number, else another number."""
    (x,) = asked.operands
    torch, limit, value = asked.call.torch, asked.call.attrs["threshold"], asked.call.attrs["value"]
    below, above = x.low <= limit, x.high > limit
    low, high = torch.where(above, x.low.clamp(min=limit), value), torch.where(above, x.high, value)
    low = torch.where(below, low.clamp(max=value), low)
    return Interval(low, torch.where(below, high.clamp(min=value), high), x.still)


def power(asked: Bounding) -> Interval:
    """x ** n: a valley for even n, else rising where it is defined."""
    (x,) = asked.operands
    by = asked.call.attrs["by"]
    if by > 0 and by % 2 == 0:
        return valley(0.0, 0.0)(asked)  # type: ignore[return-value]
    if by > 0 and (by % 2 == 1 or bool((x.low >= 0).all())):
        return rising()(asked)  # type: ignore[return-value]
    return nothing(asked)[0]


def reciprocal(asked: Bounding) -> Interval:
    """1 / x."""
    return inverse(asked.operands[0])


# -- arithmetic ------------------------------------------------------------------------------------------


def _terms(asked: Bounding) -> list[Interval]:
    """The operands, and the number that takes the place of the second."""
    operands, by = [as_real(operand) for operand in asked.operands], asked.call.attrs["by"]
    if by is not None:
        operands.append(Interval.exact(operands[0].low.new_tensor(float(by))))
    return operands


def _folded(asked: Bounding, two: Callable[[Interval, Interval], Interval]) -> Interval:
    first, *rest = _terms(asked)
    for other in rest:
        first = two(first, other).sound()
    return first


def add(asked: Bounding) -> Interval:
    """Sums of operands."""
    return _folded(asked, plus)


def sub(asked: Bounding) -> Interval:
    """Differences."""
    return _folded(asked, lambda x, y: plus(x, minus(y)))


def mul(asked: Bounding) -> Interval:
    """Products."""
    return _folded(asked, times)


def div(asked: Bounding) -> Interval:
    """Quotients."""
    return _folded(asked, lambda x, y: times(x, inverse(y)))


def larger(asked: Bounding) -> Interval:
    """The larger of operands."""
    torch = asked.call.torch

    def two(x: Interval, y: Interval) -> Interval:
        return Interval(torch.maximum(x.low, y.low), torch.maximum(x.high, y.high), x.still & y.still)

    return _folded(asked, two)


def smaller(asked: Bounding) -> Interval:
    """The smaller of operands."""
    torch = asked.call.torch

    def two(x: Interval, y: Interval) -> Interval:
        return Interval(torch.minimum(x.low, y.low), torch.minimum(x.high, y.high), x.still & y.still)

    return _folded(asked, two)


def gated(asked: Bounding) -> Interval:
    """The first half times sigmoid of the second."""
    (x,) = asked.operands
    axis = asked.call.outputs[0].unit_axis if asked.call.attrs["axis"] is None else asked.call.attrs["axis"]
    halves = [bound.chunk(2, axis) for bound in (x.low, x.high, x.still)]
    one, other = (Interval(*(half[n] for half in halves)) for n in (0, 1))
    sigmoid = asked.call.torch.sigmoid
    gate = widened(sigmoid(other.low), sigmoid(other.high), other).within(0.0, 1.0)
    return times(one, gate)


# -- sums ------------------------------------------------------------------------------------------------

LARGE = 1 << 20
"""Elements of a weight that are worked on at once, in float64."""


def weighted(made: int) -> Bounds:
    """An operation that adds up its operand times a weight, and a bias; made: the weight's axis of results."""

    def bounds(asked: Bounding) -> Interval:
        weight, bias = asked.call.params["weight"], asked.call.params.get("bias")
        if weight.dim() == 2 and weight.numel() > LARGE:
            return _by_blocks(asked, weight, bias, made)
        return _weighted(asked, weight, bias, weight.numel() // max(1, weight.shape[made]))

    return bounds


def _by_blocks(asked: Bounding, weight: Any, bias: Any, made: int) -> Interval:
    """Some results after others, so that a large weight is never held in float64."""
    torch, step = asked.call.torch, max(1, LARGE // weight.shape[1 - made])
    found = []
    for start in range(0, weight.shape[made], step):
        count = min(step, weight.shape[made] - start)
        own = bias[start : start + count] if bias is not None else None
        found.append(_weighted(asked, weight.narrow(made, start, count), own, weight.shape[1 - made]))
    ends = ([getattr(one, end) for one in found] for end in ("low", "high", "still"))
    return Interval(*(torch.cat(parts, -1) for parts in ends))


def _weighted(asked: Bounding, weight: Any, bias: Any, terms: int) -> Interval:
    (x,) = (as_real(operand) for operand in asked.operands)
    weight, constants = real(weight), [] if bias is None else [real(bias)]
    if not all(bool(one.isfinite().all()) for one in (weight, *constants)):
        return nothing(asked)[0]
    constants = [constant.reshape(_along(asked.call, len(asked.call.outputs[0].axes))) for constant in constants]
    return summed(x, lambda matrix, value: asked.at(value, weight=matrix), weight, terms, constants)


def _along(call: Call, rank: int) -> list[int]:
    """The shape of a vector along the result's units."""
    shape = [1] * rank
    shape[call.outputs[0].unit_axis] = -1
    return shape


def adding(terms: Callable[[Bounding], int]) -> Bounds:
    """An operation that adds up some of its operand's numbers, times what is not negative; terms: how many at most."""

    def bounds(asked: Bounding) -> Interval:
        (x,) = (as_real(operand) for operand in asked.operands)
        return summed(x, lambda _, value: asked.at(value), None, terms(asked))

    return bounds


def gathered(asked: Bounding) -> int:
    """As many terms as numbers of the operand come on one of the result."""
    return math.prod(asked.operands[0].shape) // max(1, math.prod(asked.call.shape()))


def taps(asked: Bounding) -> int:
    """As many terms as a window has."""
    x, kernel = asked.operands[0], asked.call.attrs["kernel_size"]
    size = math.prod(kernel) if isinstance(kernel, (list, tuple)) else int(kernel) ** max(1, len(x.shape) - 2)
    return max(size, 1)


def positions(asked: Bounding) -> int:
    """As many terms as the operand has positions, the axes behind its channels."""
    return math.prod(asked.operands[0].shape[1:])


def total(asked: Bounding) -> Interval:
    """Sums over axes; along an axis of any size only what is zero or has one sign throughout tells something."""
    found = adding(gathered)(asked)
    assert isinstance(found, Interval)
    return _any_count(asked, found) if asked.unsized else found


def _any_count(asked: Bounding, found: Interval) -> Interval:
    """Sums of any number of terms like these."""
    torch, (x,) = asked.call.torch, asked.operands
    down, up = asked.at((x.low < 0).double()) > 0, asked.at((x.high > 0).double()) > 0
    return Interval(torch.where(down, -torch.inf, 0.0), torch.where(up, torch.inf, 0.0), ~down & ~up)


def average(asked: Bounding) -> Interval:
    """Means over axes; along one of any size, anything between the least and the largest."""
    found = adding(gathered)(asked)
    assert isinstance(found, Interval)
    return nothing(asked)[0] if asked.unsized else found


def products(summed_over: Callable[[Bounding], int]) -> Bounds:
    """Sums of products of two operands; summed_over: how many."""

    def bounds(asked: Bounding) -> Interval:
        if len(asked.operands) != 2:
            return nothing(asked)[0]
        one, other = (as_real(operand) for operand in asked.operands)
        torch, terms = asked.call.torch, summed_over(asked) + 2

        def of(a: Any, b: Any) -> Any:
            """Of numbers that are not negative, endless ones among them."""
            if not bool(a.any()) or not bool(b.any()):
                return asked.at(torch.zeros_like(a), torch.zeros_like(b))
            ends = [torch.where(x.isinf(), 0.0, x) for x in (a, b)]
            endless = asked.at(a.isinf().double(), (b > 0).double()) + asked.at((a > 0).double(), b.isinf().double())
            return torch.where(endless > 0, torch.inf, asked.at(*ends))

        # The first operand as what it has above zero less what it has below: each is between two such numbers.
        above, below = (
            (one.low.clamp(min=0), one.high.clamp(min=0)),
            ((-one.high).clamp(min=0), (-one.low).clamp(min=0)),
        )
        (hp, hn), (lp, ln) = _signs(other.high), _signs(other.low)
        most = of(above[1], hp) + of(below[1], ln), of(above[0], hn) + of(below[0], lp)
        least = of(above[1], ln) + of(below[1], hp), of(above[0], lp) + of(below[0], hn)
        off = terms * 2.0**-23
        high, low = most[0] * (1 + off) - most[1] * (1 - off), least[1] * (1 - off) - least[0] * (1 + off)
        if asked.unsized:
            nought = sum((part for part in (*most, *least)), torch.zeros(())) == 0
            low, high = torch.where(nought, 0.0, -torch.inf), torch.where(nought, 0.0, torch.inf)
        still = _still(asked, one, other)
        return Interval(low, high, still)

    return bounds


def _still(asked: Bounding, one: Interval, other: Interval) -> Any:
    """Where no number that changes meets one that is not zero."""
    changing = [(~x.still).double() for x in (one, other)]
    present = [(~x.zero).double() for x in (one, other)]
    return (asked.at(changing[0], present[1]) + asked.at(present[0], changing[1])) == 0


def _signs(x: Any) -> tuple[Any, Any]:
    return x.clamp(min=0), (-x).clamp(min=0)


# -- tables and positions --------------------------------------------------------------------------------------


def table(asked: Bounding) -> Interval:
    """Rows of a table, whichever the input chooses; the ones it does choose where that is known."""
    (index,), weight = asked.operands, asked.call.params["weight"]
    if not index.low.is_floating_point() and index.known:
        return Interval.exact(real(asked.at(index.low, weight=weight)))
    step = max(1, LARGE // max(1, weight.shape[1]))
    blocks = [real(weight[start : start + step]) for start in range(0, weight.shape[0], step)]
    torch = asked.call.torch
    low = torch.stack([block.amin(0) for block in blocks]).amin(0)
    high = torch.stack([block.amax(0) for block in blocks]).amax(0)
    return Interval.between(low.expand(asked.call.shape()), high.expand(asked.call.shape()))


def padded(asked: Bounding) -> Interval:
    """More positions, which a constant fills or other positions' numbers."""
    (x,) = asked.operands
    unfilled = dataclasses.replace(asked.call, attrs={**asked.call.attrs, "value": 0.0})
    moving = dataclasses.replace(asked, call=unfilled).at((~x.still).double())
    return Interval(asked.at(x.low), asked.at(x.high), moving == 0)


def upsampled(asked: Bounding) -> Interval:
    """Numbers repeated, or weighed with their neighbours by weights that are not negative."""
    mode = asked.call.attrs["mode"]
    if mode == "bicubic":
        return nothing(asked)[0]
    found = picks(asked) if mode == "nearest" else adding(lambda _: 16)(asked)
    assert isinstance(found, Interval)
    return found


def soft(asked: Bounding) -> Interval:
    """softplus, which torch takes for x from a threshold on; where that is far up, it still rises."""
    low = asked.call.attrs["beta"] > 0 and asked.call.attrs["threshold"] >= 15
    return rising(0.0)(asked) if low else nothing(asked)[0]  # type: ignore[return-value]


def places(asked: Bounding) -> Interval:
    """The index of each position, where there are as many as are stated."""
    if asked.unsized or asked.call.attrs["skip"] is not None:
        return nothing(asked)[0]
    return Interval.exact(asked.at(asked.operands[0].low))


def equation(asked: Bounding) -> Interval:
    """A linear layer by an equation."""
    weight = asked.call.params["weight"]
    return _weighted(asked, weight, None, weight.numel()) if weight.numel() <= 16 * LARGE else nothing(asked)[0]
