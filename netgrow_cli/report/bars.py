"""Scores as bars of text."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 40
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bars(name: str, scores: Sequence[float]) -> str:
    """One line a unit: index, score, a bar relative to the largest."""
    largest = max(scores, default=0.0)
    lines = [f"{name} ({len(scores)} units)"]
    for unit, score in enumerate(scores):
        lines.append(f"{unit:>6}  {score:>10.4g}  {_bar(score / largest if largest > 0 else 0.0)}".rstrip())
    return "\n".join(lines)


def _bar(share: float) -> str:
    eighths = round(max(0.0, min(1.0, share)) * LONGEST * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
