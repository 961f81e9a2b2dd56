"""Least squares from moments: what is to be added to a weight so that it makes up for a difference.

Features z and the differences r that are left come batch by batch; only sums of their products are kept, in float64.
Minimised is the mean of |W z + c - r|^2 over W, and over the intercept c where there is one.
"""

from __future__ import annotations

from typing import Any

from netgrow_cli.frozen import frozen

GRID = tuple(10.0**power for power in range(-7, 2))
"""Ridges that are tried beside none, relative to the mean eigenvalue of the correlations."""

_STILL = 1e-12
"""A feature that varies by less than this share of its size, or of the most varying one, is constant."""


@frozen
class Solution:
    """weight: groups, outputs, features; constant: groups, outputs. explained: the share of the differences' squares
    that is made up for on the rows that were fitted. ridge: relative to the mean eigenvalue, for each group."""

    weight: Any
    constant: Any
    explained: float
    ridge: tuple[float, ...]


class Moments:
    """Sums over samples, for each of several groups with features and differences of their own.

    intercept: features and differences are taken relative to their means. All are first taken relative to the first
    batch's means, so that large means cost no digits.
    """

    def __init__(self, intercept: bool) -> None:
        self._intercept = intercept
        self.samples = 0
        self.features = 0
        self._shift: Any = None
        self._gram: Any = None
        self._cross: Any = None
        self._sum: Any = None
        self._left: Any = None
        self._squares: Any = None

    def add(self, features: Any, left: Any) -> None:
        """Take samples in: (samples, groups, features) and (samples, groups, outputs)."""
        z, r = features.double().transpose(0, 1), left.double().transpose(0, 1)
        if self._gram is None:
            self.features = z.shape[2]
            self._shift = z.mean(1, keepdim=True) if self._intercept else z.new_zeros(z.shape[0], 1, z.shape[2])
            self._gram, self._cross, self._sum, self._left, self._squares = 0.0, 0.0, 0.0, 0.0, 0.0
        z = z - self._shift
        self._gram = z.transpose(1, 2) @ z + self._gram
        self._cross = r.transpose(1, 2) @ z + self._cross
        self._sum = z.sum(1) + self._sum
        self._left = r.sum(1) + self._left
        self._squares = (r * r).sum((1, 2)) + self._squares
        self.samples += z.shape[1]

    def solved(self) -> Solution:
        """The least squares, each group for itself."""
        import torch

        found = [self._group(group) for group in range(len(self._gram))]
        total = float(self._squares.sum())
        return Solution(
            weight=torch.stack([weight for weight, _, _, _ in found]),
            constant=torch.stack([constant for _, constant, _, _ in found]),
            explained=1.0 - sum(rest for _, _, rest, _ in found) / total if total > 0.0 else 0.0,
            ridge=tuple(ridge for _, _, _, ridge in found),
        )

    def _group(self, group: int) -> tuple[Any, Any, float, float]:
        """Weight, constant, the sum of squares that is left, and the ridge."""
        import torch

        count = self.samples
        gram, cross, squares = self._gram[group], self._cross[group], float(self._squares[group])
        mean, left = self._sum[group] / count, self._left[group] / count
        if self._intercept:
            gram = gram - count * torch.outer(mean, mean)
            cross = cross - count * torch.outer(left, mean)
            squares = squares - count * float(left @ left)
        spread = (gram.diagonal().clamp(min=0.0) / count).sqrt()
        size = (mean + self._shift[group, 0]).abs() + spread.max()
        moves = spread > _STILL * size
        scale = torch.where(moves, 1.0 / spread, 0.0)
        weight, rest, ridge = _shrunk(gram * torch.outer(scale, scale), cross * scale, max(squares, 0.0), count)
        weight = weight * scale
        at = mean + self._shift[group, 0]
        constant = left - weight @ at if self._intercept else torch.zeros_like(left)
        return weight, constant, rest, ridge


def _shrunk(gram: Any, cross: Any, squares: float, count: int) -> tuple[Any, float, float]:
    """Least squares with the ridge that generalised cross-validation likes best (Golub, Heath and Wahba 1979).

    gram: of features of variance 1, or 0 where one is constant. Eigenvalues that are no more than what rounding leaves
    of zero are: what is dropped there is made up for by what the feature depends on. Where a fit without ridge leaves
    nothing, there is none: duplicates are made up for exactly.
    """
    import torch

    values, vectors = torch.linalg.eigh(gram)
    noise = 64.0 * len(values) * torch.finfo(gram.dtype).eps * float(values[-1])
    good = values > max(noise, 0.0)
    values, vectors = values[good], vectors[:, good]
    if not len(values):
        return torch.zeros_like(cross), squares, 0.0
    along = cross @ vectors
    power = (along * along).sum(0)
    unit = float(values.mean())
    best: tuple[float, float, float] | None = None
    for ridge in (0.0, *GRID):
        shrink = values + ridge * unit
        rest = squares - float((power * (values + 2.0 * ridge * unit) / (shrink * shrink)).sum())
        rest = max(rest, 1e-15 * squares)
        free = count - 1.0 - float((values / shrink).sum())
        score = rest / (free * free) if free > 0.0 else float("inf")
        if best is None or score < best[0]:
            best = (score, ridge, rest)
    assert best is not None
    _, ridge, rest = best
    return (along / (values + ridge * unit)) @ vectors.T, rest, ridge
