"""Torch tensors as bytes, and whether a tensor is the one that was announced. Imports torch."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import torch

from netgrow_cli.checkpoint.dtypes import torch_form
from netgrow_cli.checkpoint.types import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check(info: TensorInfo, tensor: torch.Tensor) -> None:
    """ValueError unless the tensor has the announced shape and dtype."""
    dtype, shape = torch_form(info.dtype, info.shape)
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"tensor {info.name!r} came as {tensor.dtype} {list(tensor.shape)}; announced was "
            f"{info.dtype} {list(info.shape)}"
        )


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The values in row-major order as flat bytes; shares the tensor's memory where it already lies so."""
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.int_repr()
    plain = plain.cpu().resolve_conj().resolve_neg().contiguous()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    # numpy has no bfloat16 and no float8; bytes it has.
    return plain.reshape(-1).view(torch.uint8).numpy().data


def from_stored(values: NDArray[Any], dtype: str) -> torch.Tensor:
    """A tensor that shares the memory of stored elements, of one of the dtypes that an edit gives."""
    return torch.from_numpy(values).view(torch_form(dtype, values.shape)[0])


def storage_bytes(storage: torch.UntypedStorage) -> memoryview:
    """All bytes of a storage, in place."""
    flat = torch.empty(0, dtype=torch.uint8)
    flat.set_(storage)
    return flat.numpy().data


def quantiser_bytes(tensor: torch.Tensor) -> bytes:
    """Scale and zero point of a quantised tensor, so that a comparison sees them too."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return struct.pack("<dq", tensor.q_scale(), tensor.q_zero_point())
    scales = tensor.q_per_channel_scales().double()
    points = tensor.q_per_channel_zero_points().double()
    return bytes(as_bytes(scales)) + bytes(as_bytes(points))
