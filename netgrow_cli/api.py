"""The Python API: the commands as typed functions. Paths in, reports out; errors are `NetgrowError`s."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netgrow_cli.checkpoint.sharding import parse_size
from netgrow_cli.fitting import fit
from netgrow_cli.jobs.choosing import Choice
from netgrow_cli.jobs.growing import expanding, splitting
from netgrow_cli.jobs.job import Options, Report, change
from netgrow_cli.jobs.recycling import recycling
from netgrow_cli.jobs.shrinking import pruning
from netgrow_cli.jobs.verification import compare_checkpoints
from netgrow_cli.proof.equivalence import Equivalence
from netgrow_cli.proof.foldback import FoldBack
from netgrow_cli.surgery.change import DEFAULT_NOISE, Init

Names = str | Sequence[str]


def _list(names: Names | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _options(given: dict[str, Any]) -> Options:
    """Keyword options as `Options`; paths may be text."""
    known = {field.name for field in dataclasses.fields(Options)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    for key in ("spec", "output", "probe_data"):
        if isinstance(given.get(key), str):
            given[key] = Path(given[key])
    if isinstance(given.get("shard_size"), str):
        given["shard_size"] = parse_size(given["shard_size"])
    for key in ("also", "leave"):
        given[key] = _list(given.get(key))
    return Options(**given)


def _choice(given: dict[str, Any]) -> tuple[Choice, dict[str, Any]]:
    """Which units, and the other options."""
    names = {field.name for field in dataclasses.fields(Choice)}
    chosen = {name: value for name, value in given.items() if name in names}
    return Choice(**chosen), {name: value for name, value in given.items() if name not in names}


def expand(
    path: str | Path,
    *,
    layer: Names | None = None,
    width: Names | None = None,
    add: int | None = None,
    to: int | None = None,
    times: float | None = None,
    init: Init = "match",
    round_to: int | None = None,
    **options: Any,
) -> Report:
    """Fresh units: random incoming weights, zero outgoing ones; the function stays. See `jobs.job.Options`."""
    select = expanding(_list(layer), _list(width), add=add, to=to, times=times, init=init, round_to=round_to)
    return change(Path(path), "expand", select, _options(options))


def split(
    path: str | Path,
    *,
    layer: Names | None = None,
    width: Names | None = None,
    units: Sequence[int] | None = None,
    every: bool = False,
    noise: float = DEFAULT_NOISE,
    ways: int = 2,
    **options: Any,
) -> Report:
    """Units become several that share their outgoing weights, with noise that cancels; the function stays.

    Of `options`, those of `Choice` say which units: `top=3, by="gradient"`.
    """
    choice, options = _choice(options)
    select = splitting(_list(layer), _list(width), units=units, every=every, noise=noise, ways=ways, choice=choice)
    return change(Path(path), "split", select, _options(options))


def prune(
    path: str | Path,
    *,
    layer: Names | None = None,
    width: Names | None = None,
    units: Sequence[int] | None = None,
    dead: bool = False,
    duplicates: bool = False,
    **options: Any,
) -> Report:
    """Units go; exact for dead units and duplicates, else it needs `allow_drift`.

    Of `options`, those of `Choice` say which units: `fraction=0.25, by="activation"`.
    """
    choice, options = _choice(options)
    select = pruning(_list(layer), _list(width), units=units, dead=dead, duplicates=duplicates, choice=choice)
    return change(Path(path), "prune", select, _options(options))


def recycle(
    path: str | Path,
    *,
    layer: Names | None = None,
    width: Names | None = None,
    units: Sequence[int] | None = None,
    every: bool = False,
    proven: bool = False,
    dormant: float | None = None,
    fresh: bool = False,
    init: Init | None = None,
    noise: float | None = None,
    **options: Any,
) -> Report:
    """Dead units become copies of live ones, which share their outgoing weights with them, or fresh ones; same shape.

    Of `options`, those of `Choice` say which units instead, and by which score others are copied. What is live needs
    `allow_drift`.
    """
    choice, options = _choice(options)
    select = recycling(
        _list(layer),
        _list(width),
        units=units,
        every=every,
        proven=proven,
        dormant=dormant,
        fresh=fresh,
        init=init,
        noise=noise,
        choice=choice,
    )
    return change(Path(path), "recycle", select, _options(options))


def verify(
    old: str | Path, new: str | Path, *, model: str | None = None, **options: Any
) -> tuple[Equivalence, FoldBack | None]:
    """Whether two checkpoints are the same function: on probes, and by the record of the change if there is one."""
    return compare_checkpoints(Path(old), Path(new), _options(options), model)


__all__ = ["expand", "fit", "prune", "recycle", "split", "verify"]
