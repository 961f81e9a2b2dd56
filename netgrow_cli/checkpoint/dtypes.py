"""The vocabulary of dtypes: safetensors' words, their sizes, and what torch calls them.

Importing this module does not import torch; only the functions that return torch's types do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from netgrow_cli.checkpoint.types import TensorInfo

# Bits of one element, in the order in which the safetensors library ranks its dtypes: files are
# laid out by falling rank, so this order is part of the format that we reproduce byte by byte.
SAFETENSORS_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
RANK: dict[str, int] = {name: rank for rank, name in enumerate(SAFETENSORS_BITS)}

# What only a torch file can hold.
_TORCH_ONLY_BITS = {"C32": 32, "C128": 128, "QINT8": 8, "QUINT8": 8, "QINT32": 32}
_BITS = {**SAFETENSORS_BITS, **_TORCH_ONLY_BITS}

_TORCH_NAMES = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "C32": "complex32",
    "C128": "complex128",
    "QINT8": "qint8",
    "QUINT8": "quint8",
    "QINT32": "qint32",
}

# torch packs two F4 numbers into one element.
_PACKED = {"F4": 2}


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a contiguous tensor takes."""
    return math.prod(shape) * _BITS[dtype] // 8


def total_bytes(infos: Iterable[TensorInfo]) -> int:
    """Bytes of all tensors, tied ones once."""
    return sum(nbytes(info.dtype, info.shape) for info in infos if info.tied_to is None)


def is_float(dtype: str) -> bool:
    """True for real floating-point dtypes, those that a parameter trained by gradients has."""
    return dtype == "BF16" or dtype.startswith("F")


@functools.cache
def _by_torch() -> dict[torch.dtype, str]:
    import torch

    return {getattr(torch, theirs): ours for ours, theirs in _TORCH_NAMES.items() if hasattr(torch, theirs)}


def name_of(dtype: torch.dtype) -> str | None:
    """The word for a torch dtype; None for one that netgrow does not know."""
    return _by_torch().get(dtype)


def logical_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in numbers, of a tensor that has `shape` in torch's (packed) elements."""
    if dtype in _PACKED and shape:
        return (*shape[:-1], shape[-1] * _PACKED[dtype])
    return shape


def torch_form(dtype: str, shape: tuple[int, ...]) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of the torch tensor that stands for a tensor of a file.

    What torch has no type for (F6, an F4 row of odd length) is held as its raw bytes, flat.
    """
    import torch

    theirs = getattr(torch, _TORCH_NAMES.get(dtype, ""), None)
    packed = _PACKED.get(dtype, 1)
    if not isinstance(theirs, torch.dtype) or (packed > 1 and (not shape or shape[-1] % packed)):
        return torch.uint8, (nbytes(dtype, shape),)
    if packed > 1:
        return theirs, (*shape[:-1], shape[-1] // packed)
    return theirs, shape


def has_torch_form(dtype: str, shape: tuple[int, ...]) -> bool:
    """False where `torch_form` falls back to raw bytes."""
    import torch

    return dtype == "U8" or torch_form(dtype, shape)[0] != torch.uint8
