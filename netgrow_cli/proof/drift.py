"""How far networks are from another one on the same probes: at most, and on the whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from netgrow_cli.frozen import frozen
from netgrow_cli.proof.equivalence import Difference, torch_dtype
from netgrow_cli.proof.probes import Probes
from netgrow_cli.topology.network import Network


@frozen
class Drift:
    """Relative differences, of the output where they are largest.

    max_rel: the largest difference over the largest value, as in an equivalence. rms_rel: the root mean square of the
    differences over that of the values.
    """

    max_rel: float
    rms_rel: float

    def as_json(self) -> dict[str, float]:
        """Its entry in the command line's JSON."""
        return dataclasses.asdict(self)


def drifts(old: Network, others: Sequence[Network], probes: Probes, *, dtype: str) -> tuple[Drift, ...]:
    """How far each of the others is from the old network."""
    real = torch_dtype(dtype)
    differences = [Difference() for _ in others]
    squares: list[list[float]] = [[] for _ in others]
    sizes_of: list[float] = []
    probes.announce("measuring", old, *others)
    for sizes, inputs in probes.batches(real, old.device):
        before = old.outputs(sizes, inputs, real)
        _add(sizes_of, [float((tensor.double() ** 2).sum()) for tensor in before])
        for other, difference, sums in zip(others, differences, squares, strict=True):
            after = other.outputs(sizes, inputs, real)
            difference.add(before, after)
            pairs = zip(before, after, strict=True)
            _add(sums, [float(((one - two).double() ** 2).sum()) for one, two in pairs])
    return tuple(
        Drift(max(difference.ratios(), default=0.0), max(map(_root_ratio, sums, sizes_of), default=0.0))
        for difference, sums in zip(differences, squares, strict=True)
    )


def _add(totals: list[float], more: Sequence[float]) -> None:
    totals.extend([0.0] * (len(more) - len(totals)))
    for position, value in enumerate(more):
        totals[position] += value


def _root_ratio(difference: float, size: float) -> float:
    if difference == 0.0:
        return 0.0
    return math.sqrt(difference / size) if size > 0.0 and math.isfinite(difference) else math.inf
