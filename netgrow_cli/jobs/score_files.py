"""Scores that users bring: what a `UnitRecorder` saved, or one number a unit by the name of its width or layer."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from netgrow_cli.checkpoint.names import strip_wrappers
from netgrow_cli.errors import NetgrowError, Refused, UsageError, first_line
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.job import Job
from netgrow_cli.recording import ACTIVE, FORMAT, GRADIENT, SIZE, TAYLOR, along, read_by
from netgrow_cli.surgery.scores import Floats, Scores, dormancy, of_makers, of_readers, summed_over_makers
from netgrow_cli.topology.layout import occurrences
from netgrow_cli.topology.solve import Topology

ENDINGS = (".safetensors", ".npz", ".csv", ".json")


@frozen
class ScoreFile:
    """A file of scores. recorder: what a recorder saved says of itself; None for a file of one number a unit."""

    path: Path
    arrays: Mapping[str, Floats]
    recorder: Mapping[str, str] | None


def open_scores(path: Path) -> ScoreFile:
    """Read a file of scores. Raises UsageError."""
    if path.suffix not in ENDINGS:
        raise UsageError(f"--scores {path}: a file of scores ends in {', '.join(ENDINGS)}")
    try:
        arrays, metadata = _READERS[path.suffix](path)
    except NetgrowError:
        raise
    except FileNotFoundError:
        raise UsageError(f"--scores {path}: there is no such file") from None
    except Exception as error:  # each format fails in its own way
        raise UsageError(f"--scores {path}: cannot be read as scores: {first_line(error)}") from None
    if not arrays:
        raise UsageError(f"--scores {path}: it holds no scores")
    odd = next((name for name, array in arrays.items() if array.ndim != 1), None)
    if odd is not None:
        raise UsageError(
            f"--scores {path}: {odd!r} has the shape {list(arrays[odd].shape)}; one number a unit is needed"
        )
    nan = next((name for name, array in arrays.items() if np.isnan(array).any()), None)
    if nan is not None:
        raise UsageError(f"--scores {path}: {nan!r} holds NaN")
    return ScoreFile(path, arrays, metadata)


def _safetensors(path: Path) -> tuple[dict[str, Floats], Mapping[str, str] | None]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        arrays = {name: np.asarray(file.get_tensor(name), dtype=np.float64) for name in sorted(file.keys())}
    return arrays, metadata if metadata.get("format") == FORMAT else None


def _npz(path: Path) -> tuple[dict[str, Floats], None]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: np.asarray(archive[name], dtype=np.float64) for name in archive.files}, None


def _csv(path: Path) -> tuple[dict[str, Floats], None]:
    """Lines of width,unit,score, as `netgrow scores --csv` prints them."""
    found: dict[str, dict[int, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if not row or (number == 1 and row[-1].strip() == "score"):
                continue
            if len(row) != 3:
                raise UsageError(f"--scores {path}:{number}: lines of width,unit,score are needed; this is {row}")
            found.setdefault(row[0], {})[int(row[1])] = float(row[2])
    return {name: _listed(path, name, units) for name, units in found.items()}, None


def _listed(path: Path, name: str, units: Mapping[int, float]) -> Floats:
    missing = next((unit for unit in range(len(units)) if unit not in units), None)
    if missing is not None:
        raise UsageError(f"--scores {path}: {name!r} has no score for unit {missing}")
    return np.asarray([units[unit] for unit in range(len(units))], dtype=np.float64)


def _json(path: Path) -> tuple[dict[str, Floats], None]:
    """What `netgrow scores --json` prints, or an object of lists by name."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(plain, dict) and isinstance(plain.get("widths"), list):
        plain = {entry["name"]: entry["scores"] for entry in plain["widths"]}
    if not isinstance(plain, dict):
        raise UsageError(f"--scores {path}: an object of lists by width is needed")
    return {str(name): np.asarray(values, dtype=np.float64) for name, values in plain.items()}, None


_READERS: Mapping[str, Any] = {".safetensors": _safetensors, ".npz": _npz, ".csv": _csv, ".json": _json}


# -- one number a unit -----------------------------------------------------------------------------


def stated(job: Job, file: ScoreFile, widths: Sequence[int]) -> dict[int, Scores]:
    """By width id, the scores that a file states, by width or by layer. Raises UsageError."""
    topology = job.topology
    return {width: _stated(topology, file, width) for width in widths}


def _stated(topology: Topology, file: ScoreFile, width: int) -> Scores:
    info = topology.widths[width]
    if info.name in file.arrays:
        values = file.arrays[info.name]
        if len(values) != info.size:
            raise UsageError(f"--scores {file.path}: {info.name!r} has {len(values)} scores; it has {info.size} units")
        return values
    for name, values in file.arrays.items():
        if name not in topology.values:
            continue
        value = topology.values[name][0]
        layout = value.axes[value.unit_axis]
        found = occurrences(layout, width)
        if not found:
            continue
        if len(values) != layout.size:
            raise UsageError(f"--scores {file.path}: {name!r} has {len(values)} scores; its output has {layout.size}")
        scores = np.full(info.size, np.nan)
        for labels in found:
            scores[labels[labels >= 0]] = values[labels >= 0]
        if not np.isnan(scores).any():
            return scores
    listed = ", ".join(list(file.arrays)[:8]) + (", ..." if len(file.arrays) > 8 else "")
    raise UsageError(f"--scores {file.path}: it has no scores for {info.name!r}; it has {listed}")


# -- what a recorder saved -------------------------------------------------------------------------


def recorded(job: Job, file: ScoreFile, by: str, widths: Sequence[int]) -> dict[int, Scores]:
    """By width id, a score from a recorder's file. Raises UsageError where it saw none of a width's layers."""
    topology = job.topology
    names = _names(topology, file)

    def kept(what: str, tensor: str, axis: int) -> Floats | None:
        found = names.get(topology.aliases[tensor])
        return file.arrays.get(along(what, found, axis)) if found is not None else None

    def read(tensor: str) -> Floats | None:
        what, found = ACTIVE if by == "active" else SIZE, names.get(topology.aliases[tensor])
        return file.arrays.get(read_by(what, found)) if found is not None else None

    scores: dict[int, Scores] = {}
    for width in widths:
        if by == GRADIENT:
            one = of_makers(topology, width, lambda tensor, axis: kept(GRADIENT, tensor, axis))
        elif by == TAYLOR:
            one = summed_over_makers(topology, width, lambda tensor, axis: kept(TAYLOR, tensor, axis))
        else:
            one = of_readers(topology, width, read)
        if one is None:
            info = topology.widths[width]
            who = ", ".join((info.producers if by in (GRADIENT, TAYLOR) else info.consumers)[:4]) or "nothing"
            raise UsageError(
                f"--scores {file.path}: it has no {by} of {info.name!r} ({who}); record the model that holds it"
            )
        scores[width] = dormancy(one) if by == "dormant" else one
    return scores


def _names(topology: Topology, file: ScoreFile) -> dict[str, str]:
    """By canonical name of the checkpoint, what a tensor is called in a recorder's file. Raises Refused."""
    told = sorted({key.split("/")[1] for key in file.arrays if key.count("/") >= 1})
    known = topology.aliases
    plain = {name: strip_wrappers(name) for name in told}
    if all(name not in known for name in plain.values()):
        plain = {name: _in_front(known, list(plain.values())) + short for name, short in plain.items()}
    found = {known[short]: name for name, short in plain.items() if short in known}
    if not found:
        raise Refused(
            f"--scores {file.path}: it was recorded of another model: it has {told[0]!r}, the checkpoint has "
            f"{next(iter(known))!r}"
        )
    return found


def _in_front(known: Mapping[str, str], names: Sequence[str]) -> str:
    """What stands in front of all of the names in the checkpoint, where they are a part of its model; else nothing."""
    for name in known:
        if name.endswith("." + names[0]):
            front = name[: -len(names[0])]
            if all(front + other in known for other in names):
                return front
    return ""
