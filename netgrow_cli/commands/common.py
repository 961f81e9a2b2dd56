"""What commands share: options that all of them take, paths that may be `-`, and how results are printed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from netgrow_cli.commands.declare import argument as argument
from netgrow_cli.commands.declare import given as given
from netgrow_cli.commands.streams import STANDARD as STANDARD
from netgrow_cli.commands.streams import destination, send
from netgrow_cli.commands.streams import one_file as one_file
from netgrow_cli.commands.streams import only_one_standard as only_one_standard
from netgrow_cli.commands.streams import readable as readable
from netgrow_cli.errors import UsageError
from netgrow_cli.frozen import frozen

if TYPE_CHECKING:
    from netgrow_cli.jobs.choosing import Choice
    from netgrow_cli.jobs.job import Options, Selector

MOST_UNITS = 1 << 24
"""More units than any width has."""


# -- options ---------------------------------------------------------------------------------------

Checkpoint = Annotated[str, argument("CKPT", "The checkpoint, or its folder; - for standard input.")]
Layer = Annotated[
    list[str] | None, given("--layer", "A layer by name, or a glob; may be given several times.", metavar="NAME")
]
WidthName = Annotated[list[str] | None, given("--width", "A width, as `inspect` names it.", metavar="NAME")]
Units = Annotated[str | None, given("--units", "Indices of the layer's output: 3,7 or 0-9 or all.", metavar="LIST")]
By = Annotated[
    str | None,
    given(
        "--by",
        "What units are ranked by: weight (the default), incoming, outgoing, activation, active, dormant, gradient, "
        "taylor, file.",
        metavar="SCORE",
    ),
]
ScoreFile = Annotated[
    Path | None,
    given("--scores", "A file of scores: a recorder's, or .csv, .json, .npz, .safetensors by width or layer."),
]
RoundTo = Annotated[int | None, given("--round-to", "New widths are multiples of N.", min=1, metavar="N")]


@frozen
class Common:
    """The options that every command with a network takes."""

    spec: Annotated[Path | None, given("--spec", "The spec; else embedded, beside the checkpoint, or drafted.")] = None
    as_json: Annotated[bool, given("--json", "One JSON object on standard output.")] = False
    key: Annotated[str | None, given("--key", "Where the state dict lies in the checkpoint.")] = None
    prefix: Annotated[str | None, given("--prefix", "What stands before every tensor's name.")] = None
    activation: Annotated[
        str, given("--activation", "In a drafted spec, the function between layers (relu, ...).", metavar="OP")
    ] = "per_unit"


@frozen
class Computing(Common):
    """The options of commands that run the network."""

    probes: Annotated[int | None, given("--probes", "How many probes.", min=1, metavar="N")] = None
    probe_data: Annotated[
        Path | None, given("--probe-data", "Your data as probes: .npy, .npz, .safetensors, .pt or .csv.")
    ] = None
    seed: Annotated[int, given("--seed", "Seed of fresh values and probes.")] = 0
    tolerance: Annotated[
        float | None, given("--tolerance", "Largest relative difference that counts as equal.", min=0.0)
    ] = None
    dtype: Annotated[str, given("--dtype", "What networks are compared in: float64 or float32.")] = "float64"
    device: Annotated[str, given("--device", "Where networks are run.")] = "cpu"


@frozen
class Proving(Computing):
    """The options of commands that compare two networks."""

    proof: Annotated[
        str, given("--proof", "Run the whole network, or the pieces that changed: auto, pieces, whole.", metavar="HOW")
    ] = "auto"


@frozen
class Writing(Proving):
    """The options of commands that write a checkpoint."""

    output: Annotated[str | None, given(("-o", "--output"), "The new checkpoint; - for standard output.")] = None
    force: Annotated[bool, given("--force", "Replace an output that exists.")] = False
    dry_run: Annotated[bool, given("--dry-run", "Print the plan; write nothing.")] = False
    no_verify: Annotated[bool, given("--no-verify", "Write without the proof.")] = False
    allow_drift: Annotated[
        float | None, given("--allow-drift", "Accept this relative drift of a lossy change.", min=0.0, metavar="X")
    ] = None
    drop_optimizer: Annotated[bool, given("--drop-optimizer", "Leave the optimizer's state out.")] = False
    also: Annotated[
        list[str] | None,
        given("--also", "Another state dict of the file that gets the same units; repeatable.", metavar="KEY"),
    ] = None
    leave: Annotated[
        list[str] | None, given("--leave", "A state dict that stays as it is; repeatable.", metavar="KEY")
    ] = None
    check_learnable: Annotated[bool, given("--check-learnable", "Check that new units can learn.")] = False
    shard_size: Annotated[
        str | None, given("--shard-size", "Cut a folder's weights anew: 5GB, 500MiB, bytes.", metavar="SIZE")
    ] = None


@frozen
class Choosing(Writing):
    """The options of commands that choose units by a score."""

    top: Annotated[int | None, given("--top", "The K units with the highest scores.", metavar="K")] = None
    lowest: Annotated[int | None, given("--lowest", "The K units with the lowest scores.", metavar="K")] = None
    above: Annotated[float | None, given("--above", "Units with a score above C.", metavar="C")] = None
    below: Annotated[float | None, given("--below", "Units with a score below C.", metavar="C")] = None
    fraction: Annotated[
        float | None,
        given("--fraction", "This share of the units: the lowest where they go, else the highest.", metavar="F"),
    ] = None
    by: By = None
    scores: ScoreFile = None
    globally: Annotated[bool, given("--globally", "Rank the units of all named layers together.")] = False
    round_to: RoundTo = None

    @property
    def choice(self) -> Choice:
        """Which units."""
        from netgrow_cli.jobs.choosing import Choice

        return Choice(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Choice)})


def takes(kind: type[Common]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the options of `kind`; it receives them as one object, its first argument `common`."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        own = inspect.signature(command, eval_str=True)
        shared = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hint)
            for field, hint in _fields(kind)
        ]

        @functools.wraps(command)
        def wrapped(**arguments: Any) -> int:
            stated = {item.name: arguments.pop(item.name) for item in shared if item.name in arguments}
            common = kind(**stated)
            return command(common, **arguments)

        kept = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own.parameters.values()
            if parameter.name != "common"
        ]
        wrapped.__signature__ = own.replace(parameters=[*kept, *shared])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, *shared]}
        return wrapped

    return decorate


def _fields(kind: type[Common]) -> list[tuple[dataclasses.Field[Any], Any]]:
    import typing

    hints = typing.get_type_hints(kind, include_extras=True)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind)]


def options_of(common: Common) -> Options:
    """The job's options."""
    from netgrow_cli.jobs.job import Options

    return Options(
        spec=common.spec,
        key=common.key,
        prefix=common.prefix,
        activation=common.activation,
        **_computing(common),
        proof=common.proof if isinstance(common, Proving) else "auto",
        **_writing(common),
    )


@contextlib.contextmanager
def watched(common: Common) -> Iterator[Options]:
    """The job's options, with a bar for what takes long; nothing is to be printed until it is gone."""
    from netgrow_cli.report.progress import shown_progress

    with shown_progress() as progress:
        yield dataclasses.replace(options_of(common), progress=progress)


def _computing(common: Common) -> dict[str, Any]:
    names = ("probes", "probe_data", "seed", "tolerance", "dtype", "device")
    return {name: getattr(common, name) for name in names} if isinstance(common, Computing) else {}


def _writing(common: Common) -> dict[str, Any]:
    if not isinstance(common, Writing):
        return {}
    names = ("force", "dry_run", "allow_drift", "drop_optimizer", "check_learnable")
    settings = {name: getattr(common, name) for name in names}
    state_dicts = {"also": tuple(common.also or ()), "leave": tuple(common.leave or ())}
    shard_size = _shard_size(common.shard_size)
    return {**settings, **state_dicts, "verify": not common.no_verify, "shard_size": shard_size}


def _shard_size(text: str | None) -> int | None:
    from netgrow_cli.checkpoint.sharding import parse_size

    return parse_size(text) if text is not None else None


# -- a change from the command line ------------------------------------------------------------------


_LEFT_BEHIND = (
    "the new spec and the record of the change lie beside a file of this format, and standard output has no place for "
    "them; -o FILE keeps them"
)


def run_change(common: Writing, source: str, command: str, select: Selector) -> int:
    """Carry out a change and print its report."""
    from netgrow_cli.jobs.job import change
    from netgrow_cli.report.change import print_report

    to_standard = common.output == STANDARD or (source == STANDARD and common.output is None)
    if to_standard and common.as_json and not common.dry_run:
        raise UsageError("--json and the checkpoint both want standard output; give -o FILE")
    if to_standard:
        one_file(source)
    with readable(source) as path, destination(common.output, to_standard) as output:
        with watched(common) as options:
            report = change(path, command, select, dataclasses.replace(options, output=output))
        if source == STANDARD:
            report = dataclasses.replace(report, input=Path(STANDARD))
        if to_standard and not common.dry_run:
            assert output is not None
            if output.with_name(f"{output.name}.netgrow.yaml").exists():
                report = dataclasses.replace(report, warnings=(*report.warnings, _LEFT_BEHIND))
            print_report(report, as_json=False, path=None)
            send(output)
            return 0
    print_report(report, as_json=common.as_json, path=report.output)
    return 0


def parse_units(text: str | None) -> tuple[list[int] | None, bool]:
    """`3,7`, `0-9`, `all`: the indices, and whether all are meant. Raises UsageError."""
    if text is None:
        return None, False
    if text.strip() == "all":
        return None, True
    units: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            start, stop = int(first), int(last if dash else first)
        except ValueError:
            raise UsageError(f"--units {text}: numbers are needed, as in 3,7 or 0-9, or all") from None
        if stop - start >= MOST_UNITS:
            raise UsageError(f"--units {text}: more units than any layer has")
        units.extend(range(start, stop + 1))
    if not units:
        raise UsageError(f"--units {text}: no unit is named")
    return sorted(set(units)), False


def print_json(result: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(_finite(result), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no infinities; they are written as null."""
    if isinstance(value, float) and value - value != 0.0:
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
