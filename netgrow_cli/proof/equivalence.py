"""Equivalence on probes: two networks, the same inputs, the largest difference of their outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from netgrow_cli.errors import CheckpointError, UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.probes import Probes
from netgrow_cli.topology.network import Network

EXACT = {"float64": 1e-10, "float32": 1e-4}
"""Default tolerance, relative to the size of the outputs, by the dtype that is computed with."""

ROUNDED = {"F64": 1e-10, "F32": 1e-5, "F16": 1e-2, "BF16": 5e-2}
"""Default tolerance where the change itself rounds in the checkpoint's dtype (gains, folded constants)."""


@frozen
class Equivalence:
    """How far two networks' outputs are apart.

    max_abs: largest difference; max_rel: the same relative to the largest value of that output.
    probes: number of rows; origin: "random" or the data's file name; constant: the outputs did not depend on
    the probes at all, so that they show little.
    mode: "whole", or "pieces" where the networks were compared in `pieces` parts, with random values at the border of
    each (then the figures are those of the worst part, and probes are rows of each), `by_units` of these by the units
    alone that changed; why: what the mode was chosen for; where: the part that differs.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    probes: int
    dtype: str
    origin: str = "random"
    constant: bool = False
    mode: str = "whole"
    pieces: int | None = None
    by_units: int | None = None
    why: str = ""
    where: str = ""

    @property
    def equal(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_rel <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """The `equivalence` object of the command line's JSON."""
        return {
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "tolerance": self.tolerance,
            "probes": self.probes,
            "dtype": self.dtype,
            "equal": self.equal,
            "data": self.origin,
            "mode": self.mode,
            "pieces": self.pieces,
            "by_units": self.by_units,
            "why": self.why,
            "where": self.where or None,
        }


def check_dtype(name: str) -> None:
    """Raises UsageError for a dtype that networks are not compared in; needs no torch."""
    if name not in EXACT:
        raise UsageError(f"--dtype {name}: networks are compared in float64 or float32")


def torch_dtype(name: str) -> Any:
    """The floating dtype to compute with. Raises UsageError."""
    import torch

    check_dtype(name)
    return {"float64": torch.float64, "float32": torch.float32}[name]


class Difference:
    """The running difference of two networks' outputs, output by output."""

    def __init__(self) -> None:
        self._worst: list[float] = []
        self._scale: list[float] = []
        self._first: list[Any] = []
        self._constant = True
        self._rows = 0

    def add(self, before: Sequence[Any], after: Sequence[Any]) -> None:
        """Take one batch of outputs in. Raises CheckpointError where they do not correspond."""
        if len(before) != len(after):
            raise CheckpointError(f"one network has {len(before)} outputs, the other {len(after)}")
        for position, (one, other) in enumerate(zip(before, after, strict=True)):
            if tuple(one.shape) != tuple(other.shape):
                raise CheckpointError(
                    f"output {position} has shape {list(one.shape)} in one network, {list(other.shape)} in the other"
                )
            if position == len(self._worst):
                self._worst.append(0.0)
                self._scale.append(0.0)
                self._first.append(one[:1])
            if math.prod(one.shape):
                distance = float(abs(one - other).max())
                distance = distance if math.isfinite(distance) else math.inf
                self._worst[position] = max(self._worst[position], distance)
                self._scale[position] = max(self._scale[position], float(abs(one).max()))
            self._constant = self._constant and bool((one == self._first[position]).all())
        self._rows += len(before[0]) if before and before[0].ndim else 1

    def ratios(self) -> list[float]:
        """The largest difference of each output, relative to its size."""
        return [_ratio(distance, size) for distance, size in zip(self._worst, self._scale, strict=True)]

    def result(self, tolerance: float, dtype: str, origin: str) -> Equivalence:
        """What all batches together say."""
        return Equivalence(
            max_abs=max(self._worst, default=0.0),
            max_rel=max(self.ratios(), default=0.0),
            tolerance=tolerance,
            probes=self._rows,
            dtype=dtype,
            origin=origin,
            constant=self._constant and self._rows > 1,
        )


def compare(old: Network, new: Network, probes: Probes, *, dtype: str, tolerance: float) -> Equivalence:
    """Run both on the probes. Raises CheckpointError where the old network's outputs are not finite."""
    real = torch_dtype(dtype)
    difference = Difference()
    probes.announce("comparing", old, new)
    for sizes, inputs in probes.batches(real, old.device):
        before = old.outputs(sizes, inputs, real)
        if not all(bool(tensor.isfinite().all()) for tensor in before):
            for name in old.infos:
                require_finite(old, name)
            raise CheckpointError("the network's outputs on the probes are not finite; equivalence cannot be shown")
        difference.add(before, new.outputs(sizes, inputs, real))
    return difference.result(tolerance, dtype, probes.origin)


def _ratio(distance: float, size: float) -> float:
    if distance == 0.0:
        return 0.0
    return distance / size if size > 0.0 else float("inf")


def require_finite(network: Network, name: str) -> None:
    """Raises CheckpointError where a tensor holds what equals nothing, not even itself."""
    tensor = network.read(name)
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise CheckpointError(
            f"tensor {name!r} holds NaN or infinite values; equivalence cannot be shown (see --no-verify)"
        )
