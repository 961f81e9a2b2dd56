"""Intervals: a lower and an upper bound of each number of a value, for all inputs at once.

All of it is computed in float64. What adds up terms is widened by the error that adding them up in float32, in any
order, can make; so bounds hold for the function itself and for a run of it in float32 or float64. Infinite bounds are
bounds like others: zero times infinity is zero, since the number itself is finite, and what comes out as no number
is not bounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from netgrow_cli.frozen import frozen

ROUNDING = 2.0**-24
"""How far, relative to itself, a result is off in float32."""

_FUNCTION = 2.0**-22
_ARGUMENT = 2.0**-50
"""How far a function of one number is off, relative to its result, and in float64 relative to what it is given."""


@frozen
class Interval:
    """Bounds of a value, tensors of its shape.

    still: which of its numbers are the same for every input. They may be known less exactly than that.
    """

    low: Any
    high: Any
    still: Any

    @classmethod
    def exact(cls, value: Any) -> Interval:
        """A value that is known."""
        return cls(value, value, value == value)

    @classmethod
    def between(cls, low: Any, high: Any) -> Interval:
        """Any numbers between these."""
        return cls(low, high, low == high)

    @classmethod
    def anything(cls, shape: Sequence[int], still: bool = False) -> Interval:
        """Numbers of which nothing is known, but perhaps that they are still."""
        import torch

        low = torch.full(tuple(shape), -torch.inf, dtype=torch.float64)
        return cls(low, -low, torch.full(tuple(shape), still))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(self.low.shape)

    @property
    def known(self) -> bool:
        """Whether all of its numbers are known."""
        return bool((self.low == self.high).all())

    @property
    def zero(self) -> Any:
        """Which of its numbers are zero for every input."""
        return (self.low == 0) & (self.high == 0)

    def map(self, function: Callable[[Any], Any]) -> Interval:
        """The same numbers elsewhere: function moves them, and may repeat some or leave some out."""
        return Interval(function(self.low), function(self.high), function(self.still))

    def sound(self) -> Interval:
        """Without NaN: where a bound is none, there is no bound; a number between equal bounds is still."""
        import torch

        if not self.low.is_floating_point():
            return self
        low = torch.where(self.low.isnan(), -torch.inf, self.low)
        high = torch.where(self.high.isnan(), torch.inf, self.high)
        return Interval(low, high, self.still | (low == high))

    def within(self, least: float | None = None, most: float | None = None) -> Interval:
        """What cannot be outside of these."""
        import torch

        least, most = (-torch.inf if least is None else least), (torch.inf if most is None else most)
        return Interval(self.low.clamp(least, most), self.high.clamp(least, most), self.still)

    def around_zero(self) -> Interval:
        """With zero as one more number that each may be."""
        return Interval.between(self.low.clamp(max=0.0), self.high.clamp(min=0.0))


def as_real(interval: Interval) -> Interval:
    """In float64, whatever its numbers are."""
    return Interval(interval.low.double(), interval.high.double(), interval.still)


def real(tensor: Any) -> Any:
    """A parameter in float64."""
    return tensor.double()


# -- functions of one number -----------------------------------------------------------------------------


def at(function: Callable[[Any], Any], x: Any) -> Any:
    """The function at bounds; where infinity is no number that it takes, at the largest one."""
    import torch

    largest = torch.finfo(torch.float64).max
    found = function(x)
    return torch.where(found.isnan() & x.isinf(), function(x.clamp(-largest, largest)), found)


def widened(low: Any, high: Any, x: Interval) -> Interval:
    """Bounds that were computed by a function of one number, with what rounding can make of it."""
    import torch

    def off(bound: Any) -> Any:
        given = torch.maximum(*(torch.where(end.isinf(), 0.0, end.abs()) for end in (x.low, x.high)))
        return _FUNCTION * bound.abs() + _ARGUMENT * given

    return Interval(
        torch.where(low.isinf(), low, low - off(low)), torch.where(high.isinf(), high, high + off(high)), x.still
    )


# -- products and sums -----------------------------------------------------------------------------------


def plus(x: Interval, y: Interval) -> Interval:
    """Sums, number by number."""
    import torch

    low, high = x.low + y.low, x.high + y.high
    off_low, off_high = (2 * ROUNDING * (a.abs() + b.abs()) for a, b in ((x.low, y.low), (x.high, y.high)))
    exact = (x.zero | y.zero).broadcast_to(low.shape)
    low, high = torch.where(exact, low, low - off_low), torch.where(exact, high, high + off_high)
    return Interval(low, high, x.still & y.still)


def minus(x: Interval) -> Interval:
    """The other sign."""
    return Interval(-x.high, -x.low, x.still)


def times(x: Interval, y: Interval) -> Interval:
    """Products, number by number."""
    import torch

    ends = [_product(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
    low, high = functools.reduce(torch.minimum, ends), functools.reduce(torch.maximum, ends)
    off = 2 * ROUNDING
    return Interval(low - off * _finite(low).abs(), high + off * _finite(high).abs(), x.still & y.still)


def inverse(x: Interval) -> Interval:
    """1 / x, of which nothing is known where x may be zero."""
    import torch

    safe = (x.low > 0) | (x.high < 0)
    low, high = torch.where(safe, 1 / x.high, -torch.inf), torch.where(safe, 1 / x.low, torch.inf)
    off = 2 * ROUNDING
    return Interval(low - off * _finite(low).abs(), high + off * _finite(high).abs(), x.still)


def hull(x: Interval, y: Interval) -> Interval:
    """What is in one of them or between them."""
    import torch

    return Interval.between(torch.minimum(x.low, y.low), torch.maximum(x.high, y.high))


def _product(a: Any, b: Any) -> Any:
    import torch

    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def _finite(x: Any) -> Any:
    import torch

    return torch.where(x.isinf(), 0.0, x)


_NOTHING: Any = object()

Sum = Callable[[Any, Any], Any]
"""A matrix and a value of numbers that are not negative: the sums over what the operation adds up."""


def summed(x: Interval, add: Sum, weight: Any, terms: int, constants: Sequence[Any] = ()) -> Interval:
    """Bounds of what adds up terms, each a number of x times one of the weight, and constants.

    add: the operation without its constants, linear in both. weight: None where all of them count once, as they are.
    terms: the most that are added up in one place.

    The terms of each sign are added up alone, so that what is said of a sum of nothing but negative ones is exact:
    each term is off by no more than `terms` roundings of itself.
    """
    import torch

    up, down = (None, _NOTHING) if weight is None else _signs(weight)
    (hp, hn), (lp, ln) = _signs(x.high), _signs(x.low)

    def total(*products: tuple[Any, Any]) -> Any:
        found = torch.zeros((), dtype=torch.float64)
        for matrix, value in products:
            if matrix is _NOTHING or not bool(value.any()):
                continue
            endless = value.isinf()
            found = found + add(matrix, torch.where(endless, 0.0, value))
            if bool(endless.any()):
                reached = add(None if matrix is None else (matrix != 0).double(), endless.double()) > 0
                found = torch.where(reached, torch.inf, found)
        return found

    high = _bound(total((up, hp), (down, ln)), total((up, hn), (down, lp)), terms, constants, 1.0)
    low = _bound(total((up, ln), (down, hp)), total((up, lp), (down, hn)), terms, constants, -1.0)
    moving = add(None if weight is None else (weight != 0).double(), (~x.still).double())
    return Interval(low.broadcast_to(moving.shape), high.broadcast_to(moving.shape), moving == 0)


def _signs(x: Any) -> tuple[Any, Any]:
    """What is above zero, and what is below, without its sign."""
    return x.clamp(min=0), (-x).clamp(min=0)


def _bound(for_it: Any, against: Any, terms: int, constants: Sequence[Any], sign: float) -> Any:
    """The furthest that a sum goes in one direction: terms that go there, terms that go back, and constants."""
    import torch

    size = for_it + against
    off = (terms + len(constants)) * ROUNDING * (1 + 2.0**-10)
    found = for_it - against.clamp(max=torch.finfo(torch.float64).max)
    for constant in constants:
        found, size = found + sign * constant, size + constant.abs()
    several = (for_it + against > 0) | (len(constants) > 1)
    return sign * (found + torch.where(several, off * size, 0.0))
