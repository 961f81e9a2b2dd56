"""One model of the catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model, and how it is run.

    inputs: one for each argument, as `netgrow trace` takes them. options: further arguments of `forward`.
    batch: rows of the inputs. tolerance: of outputs in float64; larger where the model's code computes in float32.
    """

    name: str
    library: str
    make: Callable[[], torch.nn.Module]
    inputs: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch: int = 2
    tolerance: float = 1e-9
