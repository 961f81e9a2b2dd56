"""Scores of units, and what they stand on: one number for each unit of a width, by a name that users give (`--by`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from netgrow_cli.errors import UsageError
from netgrow_cli.jobs.job import Job
from netgrow_cli.surgery.scores import SCORES, Scores

DEFAULT = "weight"


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of several widths.

    values: by width id, one number a unit. evidence: what they stand on, for reports. random: whether that is random
    probes, which show less than data do.
    """

    values: Mapping[int, Scores]
    evidence: str
    random: bool = False


def scored(job: Job, by: str, widths: Sequence[int]) -> Scored:
    """The scores of these widths. Raises UsageError for a score that does not exist."""
    if by not in SCORES:
        raise UsageError(f"--by {by}: there is no such score; there are {', '.join(SCORES)}")
    return Scored({width: SCORES[by](job.network, width) for width in widths}, "the checkpoint's weights")


def score(job: Job, by: str, width: int) -> Scores:
    """One number for each unit of one width."""
    return scored(job, by, [width]).values[width]
