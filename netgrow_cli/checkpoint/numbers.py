"""What stored bytes mean as numbers, with numpy and without torch.

*Stored* arrays hold elements as they are in a file; bfloat16, which numpy lacks, as 16-bit integers.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

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
    "BF16": "<u2",
}
# Exponent bits, bias, and whether the format has infinities (ieee), one NaN (fn) or no negative zero (fnuz).
_FLOAT8 = {
    "F8_E4M3": (4, 7, "fn"),
    "F8_E5M2": (5, 15, "ieee"),
    "F8_E4M3FNUZ": (4, 8, "fnuz"),
    "F8_E5M2FNUZ": (5, 16, "fnuz"),
}
_BFLOAT_NAN = 0x7FC0
_BFLOAT_EXPONENT = np.uint16(0x7F80)


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """How elements are held; single bytes for dtypes that numpy has nothing like."""
    return np.dtype(_NUMPY.get(dtype, "u1"))


def decode(dtype: str, stored: Array) -> Array | None:
    """Stored elements as numbers; None for dtypes that are not decoded (F4, F6, quantised)."""
    if dtype == "BF16":
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if dtype in _FLOAT8:
        return _float8_table(*_FLOAT8[dtype])[stored]
    if dtype == "F8_E8M0":
        powers = np.exp2(stored.astype(np.float64) - 127)
        return np.where(stored == 255, np.nan, powers)
    return stored if dtype in _NUMPY else None


def widen(stored: Array, dtype: str) -> NDArray[np.float64]:
    """Elements of a floating dtype as float64, exactly."""
    numbers = decode(dtype, stored)
    assert numbers is not None, dtype
    with np.errstate(invalid="ignore"):  # (NaN stays NaN)
        return numbers.astype(np.float64)


def narrow(numbers: Array, dtype: str) -> Array:
    """float64 or float32 numbers in one of F64, F32, F16, BF16, rounded to the nearest, ties to even."""
    with np.errstate(over="ignore"):
        if dtype != "BF16":
            return numbers.astype(_NUMPY[dtype])
        single = numbers.astype(np.float32, copy=False)
    bits = single.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    found = rounded.astype(np.uint16)
    if (not_numbers := np.isnan(single)).any():
        found[not_numbers] = _BFLOAT_NAN
    return found


def all_finite(stored: Array, dtype: str) -> bool:
    """Whether no element of F64, F32, F16 or BF16 is NaN or infinite."""
    if dtype == "BF16":
        return not stored.size or bool((stored & _BFLOAT_EXPONENT).max() < _BFLOAT_EXPONENT)
    return bool(np.isfinite(stored).all())


@functools.cache
def _float8_table(exponent_bits: int, bias: int, kind: str) -> NDArray[np.float64]:
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
