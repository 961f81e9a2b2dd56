"""Inputs from text: `[name=]dtype[shape]`, and for integers `:high`: `float32[2,3,96,96]`, `ids=int64[2,9]:90`."""

from __future__ import annotations

import re
from typing import Any

from netgrow_cli.errors import UsageError
from netgrow_cli.frozen import frozen

_FORM = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_]\w*)=)?(?P<dtype>\w+)\[\s*(?P<shape>(?:[1-9]\d*(?:\s*,\s*[1-9]\d*)*)?)\s*\]"
    r"(?::(?P<high>[1-9]\d*))?\s*"
)
_DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool")


@frozen
class Given:
    """One argument of the model. high: integers are below it; name: keyword, None for a positional one."""

    name: str | None
    dtype: str
    shape: tuple[int, ...]
    high: int | None = None

    def tensor(self, device: str = "cpu") -> Any:
        """An example."""
        import torch

        dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            return torch.zeros(self.shape, dtype=dtype, device=device)
        return torch.zeros(self.shape, dtype=dtype, device=device)


def parse_input(text: str) -> Given:
    """Raises UsageError for anything else than the form above."""
    match = _FORM.fullmatch(text)
    if match is None or match["dtype"] not in _DTYPES:
        raise UsageError(
            f"--input {text}: write [name=]dtype[shape], as in 'float32[2,3,96,96]' or 'int64[2,9]:90'; dtypes are "
            f"{', '.join(_DTYPES)}"
        )
    shape = tuple(int(part) for part in match["shape"].split(",") if part)
    high = int(match["high"]) if match["high"] else None
    if "int" in match["dtype"] and high is None:
        raise UsageError(f"--input {text}: integers need an upper bound, as in 'int64[2,9]:90'")
    return Given(match["name"], match["dtype"], shape, high)
