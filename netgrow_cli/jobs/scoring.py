"""Scores of units, and what they stand on: one number for each unit of a width, by a name that users give (`--by`).

A new score is one entry in `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.evidence import Evidence
from netgrow_cli.jobs.job import Job
from netgrow_cli.jobs.score_files import open_scores, recorded, stated
from netgrow_cli.proof.probes import Probes
from netgrow_cli.surgery import scores as weights
from netgrow_cli.surgery.scores import Scores, dormancy, of_makers

DEFAULT = "weight"

SCORE_PROBES = 2048
"""Rows that activations are measured on, unless `--probes` says otherwise."""


@frozen
class Scored:
    """Scores of several widths.

    by: the score's name. values: by width id, one number a unit.
    """

    by: str
    values: Mapping[int, Scores]
    evidence: Evidence


@frozen
class Source:
    """A score. recorded: whether a recorder's file may hold it, which then comes first."""

    text: str
    score: Callable[[Job, str, Sequence[int]], Scored]
    recorded: bool = False


def name_of(by: str | None, scores: str | Path | None) -> str:
    """What a score is called, where it may not be said."""
    return by or ("file" if scores is not None else DEFAULT)


def scored(job: Job, by: str | None, widths: Sequence[int], scores: str | Path | None = None) -> Scored:
    """The scores of these widths. scores: a file that holds them. Raises UsageError, and Refused where none can be."""
    by = name_of(by, scores)
    if by not in SOURCES and by != "file":
        raise UsageError(f"--by {by}: there is no such score; there are {', '.join([*SOURCES, 'file'])}")
    if scores is not None:
        return _from_file(job, by, widths, Path(scores))
    if by == "file":
        raise UsageError("--by file: name the file with --scores FILE")
    return SOURCES[by].score(job, by, widths)


def score(job: Job, by: str | None, width: int, scores: str | Path | None = None) -> Scores:
    """One number for each unit of one width."""
    return scored(job, by, [width], scores).values[width]


def _from_file(job: Job, by: str, widths: Sequence[int], path: Path) -> Scored:
    file = open_scores(path)
    if file.recorder is None:
        if by != "file":
            raise UsageError(f"--by {by}: {path} was not saved by a recorder; its own scores are --by file")
        return Scored(by, stated(job, file, widths), Evidence("file", origin=path.name))
    by = "gradient" if by == "file" else by
    if not SOURCES[by].recorded:
        names = ", ".join(name for name, source in SOURCES.items() if source.recorded)
        raise UsageError(f"--by {by}: {path} was saved by a recorder, which holds {names}")
    steps = int(file.recorder.get("steps", "0"))
    return Scored(by, recorded(job, file, by, widths), Evidence("recorded", steps, path.name))


# -- from the checkpoint ---------------------------------------------------------------------------


def _from_weights(job: Job, by: str, widths: Sequence[int]) -> Scored:
    function = weights.BY_WEIGHTS[by]
    return Scored(by, {width: function(job.network, width) for width in widths}, Evidence("weights"))


def _gradient(job: Job, by: str, widths: Sequence[int]) -> Scored:
    """Mean over a unit's incoming weights and bias of the root of Adam's bias-corrected second moment."""
    from netgrow_cli.jobs.optimizer_scores import root_mean_squares

    found = root_mean_squares(job)
    values: dict[int, Scores] = {}
    for width in widths:
        one = of_makers(job.topology, width, found.along)
        if one is None:
            info = job.topology.widths[width]
            raise Refused(
                f"--by gradient: the optimizer's state in the checkpoint has nothing for what makes {info.name} "
                f"({', '.join(info.producers[:4])}); record gradients with netgrow_cli.UnitRecorder, and "
                "pass what it saves by --scores FILE"
            )
        values[width] = one
    return Scored(by, values, Evidence("optimizer", origin=found.kind))


# -- from probes -----------------------------------------------------------------------------------


def _activations(job: Job, by: str, widths: Sequence[int]) -> Scored:
    from netgrow_cli.proof.statistics import measure

    probes = _probes(job)
    found = measure(job.network, widths, probes, dtype=job.options.dtype)
    values = dict(found.active if by == "active" else found.size)
    if by == "dormant":
        values = {width: dormancy(size) for width, size in values.items()}
    return Scored(by, values, Evidence.of_probes(probes))


def _taylor(job: Job, by: str, widths: Sequence[int]) -> Scored:
    from netgrow_cli.proof.statistics import taylor

    probes = _probes(job)
    values = taylor(job.network, widths, probes, dtype=job.options.dtype, seed=job.options.seed)
    return Scored(by, values, Evidence.of_probes(probes))


def _probes(job: Job) -> Probes:
    """Probes to score on, which are not the ones that the proof uses. Raises Refused where activations are unknown."""
    from netgrow_cli.proof.activity import need_known_functions

    need_known_functions(job.topology)
    return job.probes(job.options.probes or SCORE_PROBES, job.options.seed + 1)


SOURCES: dict[str, Source] = {
    "weight": Source("incoming norm times outgoing norm", _from_weights),
    "incoming": Source("norm of the weights that make it", _from_weights),
    "outgoing": Source("norm of the weights that read it", _from_weights),
    "activation": Source("mean absolute value on probes", _activations, recorded=True),
    "active": Source("share of probes on which it is not zero", _activations, recorded=True),
    "dormant": Source("activation relative to its layer's mean", _activations, recorded=True),
    "gradient": Source("mean absolute gradient, from Adam's state", _gradient, recorded=True),
    "taylor": Source("change of the outputs without it, to first order", _taylor, recorded=True),
}


def meaning(by: str) -> str:
    """What a score is."""
    return SOURCES[by].text if by in SOURCES else "as the file states it"
