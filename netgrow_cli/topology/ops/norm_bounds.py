"""What norms do to bounds: how far a number can be from the mean of those it is seen with, times gain and bias.

These are bounds of the function: where numbers are large beside what they differ by, a run that rounds can be off by
more than any bound of such a quotient says.
"""

from __future__ import annotations

import math
from typing import Any

from netgrow_cli.topology.intervals import Interval, as_real, real, summed
from netgrow_cli.topology.ops.base import Bounding
from netgrow_cli.topology.ops.bounds import nothing


def affine(x: Interval, axis: int, factor: Any, constants: list[Any]) -> Interval:
    """x times a factor for each unit, and constants, also one each."""
    shape = [1] * len(x.shape)
    shape[axis] = -1
    if not all(bool(one.isfinite().all()) for one in (factor, *constants)):
        return Interval.anything(x.shape)
    spread = [one.reshape(shape) for one in (factor, *constants)]
    return summed(x, _scaled_by, spread[0].expand(x.shape), 6, spread[1:])


def scaled(asked: Bounding) -> Interval:
    """Each unit times a weight of its own."""
    return affine(as_real(asked.operands[0]), asked.call.outputs[0].unit_axis, real(asked.call.params["weight"]), [])


def batch_norm(asked: Bounding) -> Interval:
    """Each channel by its own running statistics."""
    (x,), given = asked.operands, {name: real(tensor) for name, tensor in asked.call.params.items()}
    factor = (given["running_var"] + asked.call.attrs["eps"]).rsqrt()
    if "weight" in given:
        factor = factor * given["weight"]
    constants = [-given["running_mean"] * factor, *([given["bias"]] if "bias" in given else [])]
    return affine(as_real(x), 1, factor, constants)


def layer_norm(asked: Bounding) -> Interval:
    """d numbers of mean 0 and variance at most 1: none is larger than the root of d - 1."""
    if asked.unsized and "weight" not in asked.call.params:
        return nothing(asked)[0]
    return _normed(asked, _largest(_seen(asked)))


def rms_norm(asked: Bounding) -> Interval:
    """d numbers whose squares add up to d at most; each keeps its sign."""
    if asked.unsized and "weight" not in asked.call.params:
        return nothing(asked)[0]
    return _normed(asked, math.sqrt(_seen(asked)), signed=True)


def group_norm(asked: Bounding) -> Interval:
    """As `layer_norm`, over the channels of a group and all positions."""
    seen = math.prod(asked.operands[0].shape[1:]) // int(asked.call.attrs["groups"])
    return _normed(asked, _largest(seen), channels=True)


def instance_norm(asked: Bounding) -> Interval:
    """As `batch_norm` where it has running statistics, else as `layer_norm` over positions."""
    if "running_mean" in asked.call.params:
        return batch_norm(asked)
    if asked.unsized:
        return nothing(asked)[0]
    return _normed(asked, _largest(math.prod(asked.operands[0].shape[2:])), channels=True)


def unit_norm(asked: Bounding) -> Interval:
    """No number is larger than the norm it is divided by, whichever it is."""
    return _normed(asked, 1.0, signed=True) if asked.call.attrs["p"] >= 1 else nothing(asked)[0]


def response(asked: Bounding) -> Interval:
    """Divided by at least one."""
    attrs = asked.call.attrs
    shrinks = attrs["k"] >= 1 and attrs["alpha"] >= 0 and attrs["beta"] >= 0
    return asked.operands[0].around_zero() if shrinks else nothing(asked)[0]


def _normed(asked: Bounding, most: float, *, signed: bool = False, channels: bool = False) -> Interval:
    """A norm, of which no number is larger than `most` before gain and bias.

    signed: it keeps the sign of each. channels: gain and bias are along the second axis, not along the last ones.
    """
    (x,), torch = asked.operands, asked.call.torch
    high = torch.full(x.shape, most * (1 + 2.0**-20), dtype=torch.float64)
    low = -high
    if signed:
        low, high = torch.where(x.low >= 0, 0.0, low), torch.where(x.high <= 0, 0.0, high)
    found = Interval(low, high, torch.full(x.shape, bool(x.still.all())) | (low == high))
    gain, bias = (asked.call.params.get(name) for name in ("weight", "bias"))
    spread = [-1, *[1] * (len(x.shape) - 2)] if channels else None
    stated = [None if one is None else real(one).reshape(spread or one.shape) for one in (gain, bias)]
    if not all(bool(one.isfinite().all()) for one in stated if one is not None):
        return nothing(asked)[0]
    factor, constant = stated
    factor = torch.ones(()).double() if factor is None else factor + asked.call.attrs.get("offset", 0.0)
    return summed(found, _scaled_by, factor.expand(x.shape), 4, [] if constant is None else [constant])


def _seen(asked: Bounding) -> int:
    """How many numbers a norm over the last axes sees."""
    gain = asked.call.params.get("weight")
    count = gain.dim() if gain is not None else asked.call.attrs["dims"]
    return math.prod(asked.operands[0].shape[-count:])


def _largest(count: int) -> float:
    """No number is further from the mean of so many, in standard deviations. (A single one is not quite its own mean
    in a run.)"""
    return math.sqrt(max(count - 1, 1))


def _scaled_by(factor: Any, value: Any) -> Any:
    return value * factor
