"""How far the values of two tensors are apart, from their bytes, with numpy and without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from netgrow_cli.frozen import frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Elements compared at once; the temporary arrays stay at some megabytes.
_CHUNK = 1 << 20


@frozen
class ValueChange:
    """max_abs: the largest finite difference, None where there is none or the dtype is not decoded.
    differing: how many elements differ in their bits (bytes, where the dtype is not decoded)."""

    max_abs: float | int | None
    differing: int


def difference(dtype: str, a: bytes, b: bytes) -> ValueChange | None:
    """What differs between two tensors of the same dtype and shape; None if not a bit does."""
    if a == b:
        return None
    if len(a) != len(b):  # quantised, with another scheme
        return ValueChange(None, max(len(a), len(b)))
    import numpy as np

    from netgrow_cli.checkpoint.numbers import decode

    largest: float | int | None = None
    differing = 0
    for left, right in _chunks(dtype, a, b):
        changed = left.view(np.uint8) != right.view(np.uint8)
        places = changed.reshape(len(left), -1).any(axis=1)
        differing += int(places.sum())
        found = _largest(decode(dtype, left[places]), decode(dtype, right[places]))
        if found is not None and (largest is None or found > largest):
            largest = found
    return ValueChange(largest, differing)


def _chunks(dtype: str, a: bytes, b: bytes) -> Iterator[tuple[Array, Array]]:
    import numpy as np

    from netgrow_cli.checkpoint.numbers import stored_dtype

    stored = stored_dtype(dtype)
    left, right = np.frombuffer(a, stored), np.frombuffer(b, stored)
    for start in range(0, len(left), _CHUNK):
        yield left[start : start + _CHUNK], right[start : start + _CHUNK]


def _largest(a: Array | None, b: Array | None) -> float | int | None:
    import numpy as np

    if a is None or b is None or not len(a):
        return None
    if a.dtype.kind in "iu":
        # Unsigned arithmetic wraps to the true distance, which float64 cannot hold from 2^53 on.
        distance = np.where(a > b, a.astype(np.uint64) - b.astype(np.uint64), b.astype(np.uint64) - a.astype(np.uint64))
        return int(distance.max())
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        apart = np.abs(a.astype(wide) - b.astype(wide))
    finite = apart[np.isfinite(apart)]
    return float(finite.max()) if len(finite) else None
