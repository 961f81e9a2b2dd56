"""How far the values of two tensors are apart, from their bytes, with numpy and without torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Elements compared at once; the temporary arrays stay at some megabytes.
_CHUNK = 1 << 20

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "C64": "<c8",
    "C128": "<c16",
    "BOOL": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
}
# Exponent bits, bias, and whether the format has infinities (ieee), one NaN (fn) or no negative zero (fnuz).
_FLOAT8 = {
    "F8_E4M3": (4, 7, "fn"),
    "F8_E5M2": (5, 15, "ieee"),
    "F8_E4M3FNUZ": (4, 8, "fnuz"),
    "F8_E5M2FNUZ": (5, 16, "fnuz"),
}


@dataclasses.dataclass(frozen=True)
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

    largest: float | int | None = None
    differing = 0
    for left, right in _chunks(dtype, a, b):
        changed = left.view(np.uint8) != right.view(np.uint8)
        places = changed.reshape(len(left), -1).any(axis=1)
        differing += int(places.sum())
        found = _largest(_numbers(dtype, left[places]), _numbers(dtype, right[places]))
        if found is not None and (largest is None or found > largest):
            largest = found
    return ValueChange(largest, differing)


def _chunks(dtype: str, a: bytes, b: bytes) -> Iterator[tuple[Array, Array]]:
    import numpy as np

    stored = _NUMPY.get(dtype, "<u2" if dtype == "BF16" else "u1")
    left, right = np.frombuffer(a, stored), np.frombuffer(b, stored)
    for start in range(0, len(left), _CHUNK):
        yield left[start : start + _CHUNK], right[start : start + _CHUNK]


def _numbers(dtype: str, stored: Array) -> Array | None:
    """Stored elements as numbers; None for dtypes that are not decoded (F4, F6, quantised)."""
    import numpy as np

    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype in _FLOAT8:
        return _float8_table(*_FLOAT8[dtype])[stored]
    if dtype == "F8_E8M0":
        powers = np.exp2(stored.astype(np.float64) - 127)
        return np.where(stored == 255, np.nan, powers)
    return stored if dtype in _NUMPY else None


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


@functools.cache
def _float8_table(exponent_bits: int, bias: int, kind: str) -> NDArray[np.float64]:
    import numpy as np

    code = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    normal = (1 + mantissa / (1 << mantissa_bits)) * np.exp2(exponent - float(bias))
    subnormal = mantissa / (1 << mantissa_bits) * np.exp2(1.0 - bias)
    value: NDArray[np.float64] = np.where(exponent == 0, subnormal, normal) * np.where(code & 0x80, -1.0, 1.0)
    if kind == "fnuz":
        value[0x80] = np.nan
    elif kind == "fn":
        value[(code & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == (1 << exponent_bits) - 1
        value[top] = np.where(mantissa[top] == 0, np.copysign(np.inf, value[top]), np.nan)
    return value
