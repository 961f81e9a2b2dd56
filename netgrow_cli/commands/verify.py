"""`netgrow verify`: are two checkpoints the same function?"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netgrow_cli.commands.common import Computing, given, only_one_standard, options_of, print_json, readable, takes
from netgrow_cli.errors import SpecError

if TYPE_CHECKING:
    from netgrow_cli.job import Job
    from netgrow_cli.proof.equivalence import Equivalence
    from netgrow_cli.proof.foldback import FoldBack


@takes(Computing)
def verify(
    common: Computing,
    a: Annotated[str, typer.Argument(metavar="A", help="The old checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The new checkpoint.")],
    model: Annotated[
        str | None, given("--model", "Compare in the real model code: package.module:factory.", metavar="M")
    ] = None,
) -> int:
    """Compare two checkpoints on probes; exit 0 if equal. With a record of the change, fold it back first."""
    from netgrow_cli.report.check import CONSTANT, verify_text

    only_one_standard(a, b)
    with readable(a) as old, readable(b) as new:
        folded, equivalence = _compare(common, old, new, model)
    if common.as_json:
        result: dict[str, Any] = equivalence.as_json()
        result["folded_back"] = None if folded is None else {"exact": folded.exact, "differing": folded.differing}
        print_json(result)
    else:
        print(verify_text(equivalence, folded))
    if equivalence.constant:
        print(f"warning: {CONSTANT}", file=sys.stderr)
    return 0 if equivalence.equal else 1


def _compare(common: Computing, old: Path, new: Path, model: str | None) -> tuple[FoldBack | None, Equivalence]:
    from netgrow_cli.job import PROBES, opened, proof_tolerance
    from netgrow_cli.proof.equivalence import compare
    from netgrow_cli.proof.real_model import compare_models
    from netgrow_cli.proof.record import fold_back_record

    options = options_of(common)
    with (
        opened(old, dataclasses.replace(options, spec=_spec_for(old, new, common))) as first,
        opened(new, dataclasses.replace(options, spec=_spec_for(new, old, common))) as second,
    ):
        _same_inputs(first, second)
        folded, rounds = fold_back_record(first, second.checkpoint, new)
        tolerance = common.tolerance if common.tolerance is not None else proof_tolerance(first, rounds)
        probes = first.probes(common.probes or PROBES, common.seed)
        if model is not None:
            specs = first.options.spec, second.options.spec
            found = compare_models(model, (old, new), specs, probes, dtype=common.dtype, tolerance=tolerance)
        else:
            found = compare(first.network, second.network, probes, dtype=common.dtype, tolerance=tolerance)
        return folded, found


def _same_inputs(first: Job, second: Job) -> None:
    """The same probes must go into both. Raises SpecError."""
    inputs = [{given.name: given.shape[1:] for given in job.network.graph.inputs} for job in (first, second)]
    if inputs[0] != inputs[1]:
        one, other = (", ".join(f"{name} {list(shape)}" for name, shape in given.items()) for given in inputs)
        raise SpecError(
            f"the specs have different inputs, {one} ({first.found.origin}) and {other} ({second.found.origin}), so "
            "the same probes cannot go into both; give one that fits both with --spec"
        )


def _spec_for(path: Path, other: Path, common: Computing) -> Path | None:
    """The stated spec where it fits this checkpoint; else its own (None), else the one beside the other.

    A spec that states ranges fits one width only: the changed checkpoint then has its own beside it. What could
    only be drafted comes last.
    """
    from netgrow_cli.job import opened
    from netgrow_cli.topology.discover import spec_paths

    beside = [place for place in spec_paths(other) if place.is_file()][:1]
    tries: list[Path | None] = [*([common.spec] if common.spec else []), None, *beside]
    reasons, drafted = [], False
    for spec in tries:
        try:
            with opened(path, dataclasses.replace(options_of(common), spec=spec)) as job:
                if spec is not None or not job.found.assumed:
                    return spec
                drafted = True
        except SpecError as error:
            reasons.append(error)
    if drafted:
        return None
    raise reasons[0]
