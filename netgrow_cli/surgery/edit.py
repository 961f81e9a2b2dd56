"""Execution of a plan on one tensor's stored elements. The same seed gives the same bytes.

All of a tensor at once, or a run of its rows (`blocks`) that a larger one is streamed by: what is drawn at random
comes row by row, so that both give the same.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.checkpoint.numbers import narrow, widen
from netgrow_cli.checkpoint.source import Source
from netgrow_cli.surgery.tensor_edits import Averaging, AxisEdit, Sharing, TensorEdit

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Wide = NDArray[np.float64]

CONSTANTS = {"zero": 0.0, "one": 1.0, "quarter": 0.25}


def apply_edit(old: torch.Tensor, edit: TensorEdit, seed: int) -> torch.Tensor:
    """The edited tensor, of shape `edit.after`, in the old one's dtype."""
    from netgrow_cli.checkpoint.source import tensor_source
    from netgrow_cli.checkpoint.tensor_bytes import from_stored

    source = tensor_source(old)
    return from_stored(edited(source.whole(), edit, Draws(seed, edit, source)), source.dtype)


def edited(old: Array, edit: TensorEdit, draws: Draws) -> Array:
    """Stored elements of shape `edit.before` become those of shape `edit.after`."""
    dtype = draws.dtype
    for axis in edit.axes:
        old = absorbed(old, axis, dtype)
    new = old
    for axis in edit.axes:
        new = _gathered(new, axis)
    if new is old:
        new = old.copy()
    for axis in edit.axes:
        _start(new, old, axis, edit, draws)
    if edit.rescales:
        new = rescaled(new, edit, dtype)
    for axis in edit.axes:
        for level in range(len(axis.sharing)):
            _share(new, axis, level, draws)
        _start_readers(new, axis, draws)
    _clear_corners(new, edit)
    for axis in edit.axes:  # (shares have noise of their own)
        _mirror(new, axis)
    return np.ascontiguousarray(new)


def _gathered(tensor: Array, axis: AxisEdit) -> Array:
    """By new indices; what stands at fresh ones is overwritten later."""
    if tensor.shape[axis.axis] == 0:
        return np.zeros(_shape_of(tensor, axis.axis, len(axis.index)), tensor.dtype)
    return np.take(tensor, np.maximum(axis.index, 0), axis.axis)


class Draws:
    """Random values for one tensor: reproducible, and independent of the order in which tensors are edited.

    Each purpose has a generator of its own, which goes on where it stopped when the next rows ask.
    """

    def __init__(self, seed: int, edit: TensorEdit, old: Source) -> None:
        self.dtype = old.dtype
        self._seed = f"{seed}:{edit.name}"
        self._kaiming = edit.init == "kaiming"
        made = {axis.axis for axis in edit.axes if len(axis.start)}
        fan_in = [size for axis, size in enumerate(edit.before) if axis not in made]
        self._fan_in = max(1, int(np.prod(fan_in))) if edit.before else 1
        self._generators: dict[str, np.random.Generator] = {}
        self._rests: dict[str, Array] = {}
        self._edit = edit
        self._old = old
        self._spread: float | None = None
        self._sizes: dict[int, Wide] = {}

    def _generator(self, purpose: str) -> np.random.Generator:
        if purpose not in self._generators:
            digest = hashlib.sha256(f"{self._seed}:{purpose}".encode()).digest()
            self._generators[purpose] = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        return self._generators[purpose]

    @property
    def spread(self) -> float:
        """The standard deviation of the old tensor's values; of a sample, where they are many."""
        if self._spread is None:
            values = widen(self._old.sample(), self.dtype)
            with np.errstate(all="ignore"):
                self._spread = float(values.std()) if values.size > 1 else 0.0
        return self._spread

    @property
    def mean(self) -> float:
        """The mean of the old tensor's values, of a sample where they are many; 1 where there is none."""
        values = widen(self._old.sample(), self.dtype)
        with np.errstate(all="ignore"):
            found = float(values.mean()) if values.size else 0.0
        return found if np.isfinite(found) and found else 1.0

    def fresh(self, shape: tuple[int, ...], purpose: str) -> Array:
        """Values as the layer's others are: their own spread, or Kaiming's uniform (He et al. 2015, a = sqrt 5)."""
        generator, drawn = self._generator(purpose), np.float64 if self.dtype == "F64" else np.float32
        if self._kaiming or not np.isfinite(self.spread) or self.spread == 0.0:
            bound = 1.0 / np.sqrt(self._fan_in)
            values = generator.random(shape, drawn) * drawn(2 * bound) - drawn(bound)
        elif self.dtype in ("F16", "BF16"):
            return np.take(self._quantiles, self._sixteen_bits(purpose, math.prod(shape)), mode="clip").reshape(shape)
        else:
            values = generator.standard_normal(shape, drawn) * drawn(self.spread)
        return narrow(values, self.dtype)

    def _sixteen_bits(self, purpose: str, count: int) -> Array:
        """The next so many random numbers below 65,536; four come from each of the generator's."""
        rest = self._rests.get(purpose, np.zeros(0, np.uint16))
        words = self._generator(purpose).bit_generator.random_raw(max(0, -(-(count - len(rest)) // 4)))
        found = np.concatenate([rest, np.atleast_1d(words).astype("<u8", copy=False).view("<u2")])
        self._rests[purpose] = found[count:].copy()
        return found[:count]

    @functools.cached_property
    def _quantiles(self) -> Array:
        """The normal distribution as so many equally likely values: dtypes of 16 bits hold no finer ones, and to pick
        from them takes a fifth of the time."""
        return narrow(normal_quantiles() * self.spread, self.dtype)

    def noise(self, axis: AxisEdit, level: int, shape: tuple[int, ...]) -> Wide:
        """Normal noise for one level of sharing along an axis, of the size that is relative to each column's."""
        sharing = axis.sharing[level]
        drawn = self._generator(f"noise:{axis.axis}:{level}").standard_normal(shape)
        olds = axis.index[sharing.first]
        size = np.where(olds < 0, 0.0, self.size(axis)[olds]) * np.abs(axis.gain[sharing.first] * self._edit.gain)
        size = size * (sharing.noise * 0.5**level)  # (at each level a share is half the one before)
        across = [1] * len(shape)
        across[axis.axis] = -1
        return drawn * size.reshape(across)

    def size(self, axis: AxisEdit) -> Wide:
        """For each old index along an axis the root mean square of what stands there."""
        if axis.axis not in self._sizes:
            shape = self._old.shape
            total = np.zeros(shape[axis.axis])
            others = tuple(n for n in range(len(shape)) if n != axis.axis)
            for first, last in row_blocks(shape):
                squares = np.square(widen(self._old.rows(first, last), self.dtype)).sum(others)
                if axis.axis == 0:
                    total[first:last] = squares
                else:
                    total += squares
            self._sizes[axis.axis] = np.sqrt(total / max(1, self._old.size // max(1, shape[axis.axis])))
        return self._sizes[axis.axis]


@functools.cache
def normal_quantiles() -> Wide:
    """65,536 equally likely values of the standard normal distribution, by interpolating the error function."""
    grid = np.linspace(-6.0, 6.0, 8193)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in grid])
    return np.interp((np.arange(1 << 16) + 0.5) / (1 << 16), below, grid)


ELEMENTS = 1 << 18
"""About as many elements are worked on at once; float64 copies of them stay in the processor's cache."""


def row_blocks(shape: tuple[int, ...], elements: int = ELEMENTS) -> list[tuple[int, int]]:
    """Runs of rows, (first, last), of about so many elements each."""
    step = max(1, elements // max(1, math.prod(shape[1:])))
    return [(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]


def absorbed(tensor: Array, axis: AxisEdit, dtype: str) -> Array:
    """Merged units: what the gone one passed on is added to the kept one's, before anything moves.

    Added up from the last to the first, as shares were made: so every sum on the way is exact that was so.
    """
    for entry in axis.absorb:
        tensor, shape = tensor.copy(), [1] * tensor.ndim
        shape[axis.axis] = -1
        kept, where = np.unique(entry.kept, return_inverse=True)
        total = np.moveaxis(widen(np.take(tensor, kept, axis.axis), dtype), axis.axis, 0)
        taken = widen(np.take(tensor, entry.gone, axis.axis), dtype) * entry.factor.reshape(shape)
        more = np.full_like(total, -0.0)  # (which added to a negative zero leaves it one)
        np.add.at(more, where[::-1], np.moveaxis(taken, axis.axis, 0)[::-1])
        total += more
        put(tensor, axis.axis, kept, narrow(np.moveaxis(total, 0, axis.axis), dtype))
    return tensor


def put(tensor: Array, axis: int, places: Any, values: Any) -> None:
    """Write values at indices of one axis."""
    tensor[(slice(None),) * axis + (places,)] = values


def _start(new: Array, old: Array, axis: AxisEdit, edit: TensorEdit, draws: Draws) -> None:
    """Fresh entries along an axis that makes units."""
    if len(axis.start):
        shape = _shape_of(new, axis.axis, len(axis.start))
        constant = draws.mean if edit.start == "mean" else CONSTANTS.get(edit.start)
        values = draws.fresh(shape, f"start:{axis.axis}") if constant is None else _constant(constant, draws.dtype)
        put(new, axis.axis, axis.start, values)
    if len(axis.blank):
        put(new, axis.axis, axis.blank, 0)
    for averaging in axis.mean:
        put(new, axis.axis, averaging.places, means(old, edit, axis, averaging, draws.dtype))
    _mirror(new, axis)


def _constant(value: float, dtype: str) -> Array:
    return narrow(np.asarray([value]), dtype)


def _mirror(new: Array, axis: AxisEdit) -> None:
    """Fresh units that are to be the same."""
    for first, second in axis.mirror:
        if len(first):
            put(new, axis.axis, second, np.take(new, first, axis.axis))


def means(old: Array, edit: TensorEdit, axis: AxisEdit, averaging: Averaging, dtype: str) -> Array:
    """The mean of old units, with all other axes as they will be; zero where those are fresh, as nothing is there."""
    # All fresh units are the mean of the same old ones, so that few means are to be taken, one row after the other.
    different, which = np.unique(averaging.sources, axis=1, return_inverse=True)
    total: Any = sum(widen(np.take(old, sources, axis.axis), dtype) for sources in different)
    mean = total / len(different)
    for other in edit.axes:
        if other.axis != axis.axis:
            mean = _gathered(mean, other)
            put(mean, other.axis, np.flatnonzero(other.index < 0), 0.0)
    return narrow(np.take(mean, which.reshape(-1), axis.axis), dtype)


def _start_readers(new: Array, axis: AxisEdit, draws: Draws) -> None:
    """Fresh entries along an axis that reads units: zero, unless the unit itself is zero or has an opposite."""
    if len(axis.zero):
        put(new, axis.axis, axis.zero, 0)
    first, second = axis.opposed
    if len(first):
        values = draws.fresh(_shape_of(new, axis.axis, len(first)), f"opposed:{axis.axis}")
        put(new, axis.axis, first, values)
        put(new, axis.axis, second, narrow(-widen(values, draws.dtype), draws.dtype))
    if len(axis.random):
        values = draws.fresh(_shape_of(new, axis.axis, len(axis.random)), f"random:{axis.axis}")
        put(new, axis.axis, axis.random, values)


def _clear_corners(new: Array, edit: TensorEdit) -> None:
    """Rows that carry are zero, or cancel, along what other axes made fresh too."""
    for axis in edit.axes:
        for other in edit.axes:
            fresh = np.flatnonzero(other.index < 0)
            if len(axis.carried) and other is not axis and len(fresh):
                rows = np.take(new, axis.carried, axis.axis)
                put(rows, other.axis, fresh, 0)
                put(new, axis.axis, axis.carried, rows)


def _shape_of(tensor: Array, axis: int, length: int) -> tuple[int, ...]:
    return (*tensor.shape[:axis], length, *tensor.shape[axis + 1 :])


def _share(tensor: Array, axis: AxisEdit, level: int, draws: Draws) -> None:
    """What stands at `first` is shared between `first` and `second`: w/2 + e and w/2 - e, exactly.

    In the tensor's own dtype B = rnd(w - rnd(w/2 + e)), A = rnd(w - B). Where A + B is not w bit for bit, the same
    with e no larger than w, which has room for w's last bits; else w/2 twice, and where even that is not w (the
    least subnormals), w and 0.
    """
    sharing: Sharing = axis.sharing[level]
    dtype, place = draws.dtype, axis.axis
    whole = np.take(tensor, sharing.first, place)
    wide = widen(whole, dtype)
    half = narrow(wide / 2, dtype)
    one, other = half, half
    if sharing.noise > 0.0:
        shift = draws.noise(axis, level, whole.shape)
        for bounded in (np.clip(shift, -np.abs(wide), np.abs(wide)), shift):
            parts = _apart(wide, bounded, dtype)
            exact = _adds_up(*parts, wide, dtype)
            one, other = np.where(exact, parts[0], one), np.where(exact, parts[1], other)
    exact = _adds_up(one, other, wide, dtype)
    put(tensor, place, sharing.first, np.where(exact, one, whole))
    put(tensor, place, sharing.second, np.where(exact, other, np.zeros_like(whole)))


def _apart(wide: Wide, shift: Wide, dtype: str) -> tuple[Array, Array]:
    """w/2 + e and w/2 - e, the smaller one rounded as the larger one needs it (Sterbenz' lemma)."""
    with np.errstate(invalid="ignore"):  # (infinite weights add up to none, which is seen then)
        first = narrow(wide / 2 + shift, dtype)
        other = narrow(wide - widen(first, dtype), dtype)
        return narrow(wide - widen(other, dtype), dtype), other


def _adds_up(one: Array, other: Array, whole: Wide, dtype: str) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        same: NDArray[np.bool_] = (widen(one, dtype) + widen(other, dtype)) == whole
    return same


def rescaled(tensor: Array, edit: TensorEdit, dtype: str, places: Mapping[int, Any] | None = None) -> Array:
    """What a gain multiplies, as it is stored. places: by axis, the new indices that the tensor holds, if not all."""
    new = (widen(tensor, dtype) + edit.offset) * edit.gain
    for axis in edit.axes:
        shape = [1] * new.ndim
        shape[axis.axis] = -1
        new = new * axis.gain[(places or {}).get(axis.axis, slice(None))].reshape(shape)
    return narrow(new - edit.offset, dtype)
