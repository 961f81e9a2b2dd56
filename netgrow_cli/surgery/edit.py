"""Execution of a plan on tensors, one at a time. The same seed gives the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from netgrow_cli.surgery.tensor_edits import Averaging, AxisEdit, Sharing, TensorEdit

if TYPE_CHECKING:
    import torch

CONSTANTS = {"zero": 0.0, "one": 1.0, "quarter": 0.25}


def apply_edit(old: torch.Tensor, edit: TensorEdit, seed: int) -> torch.Tensor:
    """The edited tensor, of shape `edit.after`, in the old one's dtype."""
    draw = _Draw(seed, edit, old)
    new = old
    for axis in edit.axes:
        new = absorbed(new, axis)
    for axis in edit.axes:
        new = new.index_select(axis.axis, _index(np.maximum(axis.index, 0)))
    for axis in edit.axes:
        _start(new, old, axis, edit, draw)
    if edit.rescales:
        new = rescaled(new, edit)
    for axis in edit.axes:
        for level, sharing in enumerate(axis.sharing):
            _share(new, axis.axis, sharing, draw.noise(axis.axis, level))
        _start_readers(new, axis, draw)
    _clear_corners(new, edit)
    for axis in edit.axes:  # (shares have noise of their own)
        _mirror(new, axis)
    return new.contiguous()


class _Draw:
    """Random values for one tensor: reproducible, and independent of the order in which tensors are edited."""

    def __init__(self, seed: int, edit: TensorEdit, old: torch.Tensor) -> None:
        self._seed = f"{seed}:{edit.name}"
        self._kaiming = edit.init == "kaiming"
        made = {axis.axis for axis in edit.axes if len(axis.start)}
        fan_in = [size for axis, size in enumerate(edit.before) if axis not in made]
        self._fan_in = max(1, int(np.prod(fan_in))) if edit.before else 1
        self._old = old

    def _generator(self, purpose: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self._seed}:{purpose}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))

    def fresh(self, shape: tuple[int, ...], purpose: str) -> torch.Tensor:
        """Values as the layer's others are: their own spread, or Kaiming's uniform (He et al. 2015, a = sqrt 5)."""
        import torch

        generator = self._generator(purpose)
        spread = float(self._old.double().std(correction=0)) if self._old.numel() > 1 else 0.0
        if self._kaiming or not np.isfinite(spread) or spread == 0.0:
            bound = 1.0 / np.sqrt(self._fan_in)
            values = generator.uniform(-bound, bound, shape)
        else:
            values = generator.normal(0.0, spread, shape)
        return torch.from_numpy(values).to(self._old.dtype)

    def noise(self, axis: int, level: int) -> Callable[[tuple[int, ...]], torch.Tensor]:
        """Unit normal noise for one level of sharing along an axis."""
        import torch

        generator = self._generator(f"noise:{axis}:{level}")
        return lambda shape: torch.from_numpy(generator.standard_normal(shape))


def _index(positions: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(positions, dtype=np.int64))


def absorbed(tensor: torch.Tensor, axis: AxisEdit) -> torch.Tensor:
    """Merged units: what the gone one passed on is added to the kept one's, before anything moves."""
    import torch

    for entry in axis.absorb:
        wide = tensor.to(torch.float64)
        shape = [1] * tensor.dim()
        shape[axis.axis] = -1
        taken = wide.index_select(axis.axis, _index(entry.gone)) * torch.from_numpy(entry.factor).reshape(shape)
        tensor = wide.index_add(axis.axis, _index(entry.kept), taken).to(tensor.dtype)
    return tensor


def _start(new: torch.Tensor, old: torch.Tensor, axis: AxisEdit, edit: TensorEdit, draw: _Draw) -> None:
    """Fresh entries along an axis that makes units."""
    if len(axis.start):
        shape = _shape_of(new, axis.axis, len(axis.start))
        constant = CONSTANTS.get(edit.start)
        values = draw.fresh(shape, f"start:{axis.axis}") if constant is None else new.new_full(shape, constant)
        new.index_copy_(axis.axis, _index(axis.start), values)
    if len(axis.blank):
        new.index_fill_(axis.axis, _index(axis.blank), 0.0)
    for averaging in axis.mean:
        new.index_copy_(axis.axis, _index(averaging.places), means(old, edit, axis, averaging))
    _mirror(new, axis)


def _mirror(new: torch.Tensor, axis: AxisEdit) -> None:
    """Fresh units that are to be the same."""
    for first, second in axis.mirror:
        if len(first):
            new.index_copy_(axis.axis, _index(second), new.index_select(axis.axis, _index(first)))


def means(old: torch.Tensor, edit: TensorEdit, axis: AxisEdit, averaging: Averaging) -> torch.Tensor:
    """The mean of old units, with all other axes as they will be."""
    import torch

    gathered = old.to(torch.float64)
    for other in edit.axes:
        if other.axis != axis.axis:
            gathered = gathered.index_select(other.axis, _index(np.maximum(other.index, 0)))
    # All fresh units are the mean of the same old ones, so that few means are to be taken, one row after the other.
    different, which = np.unique(averaging.sources, axis=1, return_inverse=True)
    total = sum(gathered.index_select(axis.axis, _index(sources)) for sources in different)
    mean = torch.as_tensor(total) / len(different)
    return mean.index_select(axis.axis, _index(which.reshape(-1))).to(old.dtype)


def _start_readers(new: torch.Tensor, axis: AxisEdit, draw: _Draw) -> None:
    """Fresh entries along an axis that reads units: zero, unless the unit itself is zero or has an opposite."""
    if len(axis.zero):
        new.index_fill_(axis.axis, _index(axis.zero), 0.0)
    first, second = axis.opposed
    if len(first):
        values = draw.fresh(_shape_of(new, axis.axis, len(first)), f"opposed:{axis.axis}")
        new.index_copy_(axis.axis, _index(first), values)
        new.index_copy_(axis.axis, _index(second), -values)
    if len(axis.random):
        values = draw.fresh(_shape_of(new, axis.axis, len(axis.random)), f"random:{axis.axis}")
        new.index_copy_(axis.axis, _index(axis.random), values)


def _clear_corners(new: torch.Tensor, edit: TensorEdit) -> None:
    """Rows that carry are zero, or cancel, along what other axes made fresh too."""
    for axis in edit.axes:
        for other in edit.axes:
            fresh = _index(np.flatnonzero(other.index < 0))
            if len(axis.carried) and other is not axis and len(fresh):
                rows = new.index_select(axis.axis, _index(axis.carried)).index_fill_(other.axis, fresh, 0.0)
                new.index_copy_(axis.axis, _index(axis.carried), rows)


def _shape_of(tensor: torch.Tensor, axis: int, length: int) -> tuple[int, ...]:
    return (*tensor.shape[:axis], length, *tensor.shape[axis + 1 :])


def _share(tensor: torch.Tensor, axis: int, sharing: Sharing, noise: Callable[[tuple[int, ...]], torch.Tensor]) -> None:
    """What stands at `first` is shared between `first` and `second`: w/2 + e and w/2 - e, exactly.

    In the tensor's own dtype B = rnd(w - rnd(w/2 + e)), A = rnd(w - B). Where A + B is not w bit for bit, the same
    with e no larger than w, which has room for w's last bits; else w/2 twice, and where even that is not w (the
    least subnormals), w and 0.
    """
    import torch

    first, second = _index(sharing.first), _index(sharing.second)
    whole = tensor.index_select(axis, first)
    wide = whole.to(torch.float64)
    half = (wide / 2).to(tensor.dtype)
    one, other = half, half
    if sharing.noise > 0.0:
        others = [n for n in range(tensor.dim()) if n != axis]
        size = wide.square().mean(others, keepdim=True).sqrt() if others else wide.abs()
        shift = sharing.noise * size * noise(tuple(whole.shape))
        for bounded in (shift.clamp(-wide.abs(), wide.abs()), shift):
            parts = _apart(wide, bounded, tensor.dtype)
            exact = _adds_up(*parts, whole)
            one, other = torch.where(exact, parts[0], one), torch.where(exact, parts[1], other)
    exact = _adds_up(one, other, whole)
    one, other = torch.where(exact, one, whole), torch.where(exact, other, torch.zeros_like(whole))
    tensor.index_copy_(axis, first, one)
    tensor.index_copy_(axis, second, other)


def _apart(wide: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """w/2 + e and w/2 - e, the smaller one rounded as the larger one needs it (Sterbenz' lemma)."""
    import torch

    first = (wide / 2 + shift).to(dtype)
    other = (wide - first.to(torch.float64)).to(dtype)
    return (wide - other.to(torch.float64)).to(dtype), other


def _adds_up(one: torch.Tensor, other: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    import torch

    return (one.to(torch.float64) + other.to(torch.float64)) == whole.to(torch.float64)


def rescaled(tensor: torch.Tensor, edit: TensorEdit, places: Mapping[int, Any] | None = None) -> torch.Tensor:
    """What a gain multiplies, as it is stored. places: by axis, the new indices that the tensor holds, if not all."""
    import torch

    new = (tensor.to(torch.float64) + edit.offset) * edit.gain
    for axis in edit.axes:
        shape = [1] * new.dim()
        shape[axis.axis] = -1
        new = new * torch.from_numpy(axis.gain[(places or {}).get(axis.axis, slice(None))]).reshape(shape)
    return (new - edit.offset).to(tensor.dtype)
