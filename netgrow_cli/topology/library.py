"""What computes: torch with its tensors, or numpy with its arrays, which spares the import of torch.

Which of the two is said by the dtype that floating numbers are computed in: one of torch's, or one of numpy's.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netgrow_cli.checkpoint.source import Source

_BLAS = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)
"""The functions of OpenBLAS that get and set how many threads it uses, as numpy's builds call them."""


class NeedsTorch(Exception):
    """numpy cannot compute this, or not as torch does."""


_SETTLED = (
    "acos asin atan cos cosh erf erfc erfinv exp expm1 lgamma log log10 log1p log2 rsqrt sigmoid sin sinh sqrt tan tanh"
).split()


@functools.cache
def torch_at_full_precision() -> Any:
    """torch, after each of its functions that it leaves to a library has been called once, with one number.

    The first call of a function in a process decides how it is computed (oneMKL's vector functions until 2024.2). Where
    several threads make it at once, one of them may get half the digits, once (pytorch issue 188792): one proof in a
    hundred would be refused for a difference that is not there.
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in _SETTLED:
            getattr(torch, name)(one)
    return torch


def in_numpy(dtype: Any) -> bool:
    """Whether numpy computes."""
    import numpy as np

    return isinstance(dtype, np.dtype)


def given(values: Any, dtype: Any, device: str = "cpu") -> Any:
    """An array of numpy's, floating numbers in `dtype`, as what computes takes it."""
    if in_numpy(dtype):
        return values.astype(dtype, copy=False) if values.dtype.kind == "f" else values
    import torch

    tensor = torch.from_numpy(values)
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).to(device)


def decoded(dtype: str, stored: Any) -> Any:
    """Stored elements as numbers of some dtype that holds them. Raises NeedsTorch for what numpy has nothing like."""
    from netgrow_cli.checkpoint.numbers import decode

    found = decode(dtype, stored)
    if found is None:
        raise NeedsTorch(f"{dtype} values")
    return found


def numbers(source: Source, dtype: Any, stored: Any = None) -> Any:
    """A tensor's numbers as an array; floating ones in `dtype`. stored: some of its elements instead of all."""
    from netgrow_cli.checkpoint.dtypes import is_float

    found = decoded(source.dtype, source.whole() if stored is None else stored)
    if is_float(source.dtype):
        return found.astype(dtype)
    return found.astype(bool) if source.dtype == "BOOL" else found


def finite(values: Any) -> bool:
    """Whether no number of a tensor or array is NaN or infinite."""
    import numpy as np

    found = np.isfinite(values) if isinstance(values, np.ndarray) else values.isfinite()
    return bool(found.all())


def without_gradients(dtype: Any) -> contextlib.AbstractContextManager[Any]:
    """Computing alone (which each thread has to say for itself)."""
    if in_numpy(dtype):
        import numpy as np

        return np.errstate(all="ignore")
    import torch

    return torch.no_grad()


@contextlib.contextmanager
def one_thread(dtype: Any) -> Iterator[None]:
    """Each operation takes one thread: where several run at once, waiting for each other's threads costs more."""
    if in_numpy(dtype):
        getting, setting = blas_threads()
    else:
        import torch

        getting, setting = torch.get_num_threads, torch.set_num_threads
    before = getting()
    setting(1)
    try:
        yield
    finally:
        setting(before)


@functools.cache
def blas_threads() -> tuple[Callable[[], int], Callable[[int], object]]:
    """How numpy's matrix products are told how many threads to use; other libraries than OpenBLAS are let be."""
    import ctypes

    names = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")  # (the second before numpy 2)
    core = next((sys.modules[name].__file__ for name in names if name in sys.modules), None)
    try:
        library = ctypes.CDLL(core)  # (in which what it was linked with is found too)
    except (OSError, TypeError):
        library = None
    for name in _BLAS:
        getting, setting = (getattr(library, name.format(verb), None) for verb in ("get", "set"))
        if getting is not None and setting is not None:
            return getting, setting
    return lambda: 1, lambda count: None
