"""Stored elements as numbers and back, as torch has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netgrow_cli.checkpoint.numbers import all_finite, narrow, stored_dtype, widen
from netgrow_cli.checkpoint.source import ArraySource, tensor_source
from netgrow_cli.checkpoint.tensor_bytes import from_stored

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored(dtype: str, values: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    return tensor_source(values.to(DTYPES[dtype])).whole()


@pytest.mark.parametrize("dtype", ("F16", "BF16"))
def test_every_number_of_sixteen_bits(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(stored_dtype(dtype))
    tensor = from_stored(values.copy(), dtype)
    wide = widen(values, dtype)
    np.testing.assert_array_equal(wide, tensor.double().numpy())
    back = narrow(wide, dtype).view(np.uint16)
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(back[finite], bits[finite])
    np.testing.assert_array_equal(widen(back.view(stored_dtype(dtype)), dtype), wide)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_that_of_torch(dtype: str) -> None:
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(20000, generator=generator, dtype=torch.float64)
    numbers = numbers * 2.0 ** torch.randint(-160, 160, (20000,), generator=generator)
    ties = widen(stored("BF16", torch.randn(2000, generator=generator)), "BF16") * (1 + 2.0**-8)
    for values in (numbers.numpy(), ties, np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e308])):
        expected = torch.from_numpy(values).to(DTYPES[dtype]).double().numpy()
        np.testing.assert_array_equal(widen(narrow(values, dtype), dtype), expected)


def test_finite() -> None:
    for dtype in DTYPES:
        good = stored(dtype, torch.tensor([1.0, -2.0]))
        assert all_finite(good, dtype)
        for bad in (float("nan"), float("inf")):
            assert not all_finite(stored(dtype, torch.tensor([1.0, bad])), dtype)


def test_a_sample_of_a_large_tensor_comes_from_all_of_it() -> None:
    values = np.arange(1 << 20, dtype=np.float32)
    found = ArraySource(values.reshape(1 << 10, 1 << 10), "F32").sample()
    assert len(found) == len(np.unique(found)) == 1 << 16
    assert abs(found.mean() / values.mean() - 1) < 0.02 and abs(found.std() / values.std() - 1) < 0.02
    few = ArraySource(values[:100], "F32")
    np.testing.assert_array_equal(few.sample(), values[:100])
