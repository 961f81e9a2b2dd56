"""`netgrow apply RECIPE CKPT...`: several changes at once, many checkpoints."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

from netgrow_cli.commands.common import STANDARD, Writing, argument, print_json, takes, watched
from netgrow_cli.errors import NetgrowError, UsageError


@takes(Writing)
def apply(
    common: Writing,
    recipe: Annotated[str, argument("RECIPE", "A YAML file of changes.")],
    ckpts: Annotated[list[str], argument("CKPT...", "The checkpoints.")],
) -> int:
    """Several changes, one after another, on every checkpoint named. Each step is proven."""
    from netgrow_cli.jobs.recipe import read_recipe

    if STANDARD in ckpts:
        raise UsageError("apply works on files; give their names")
    if common.output is not None and len(ckpts) > 1:
        raise UsageError(f"-o names one output, and there are {len(ckpts)} checkpoints; leave it out")
    steps = read_recipe(Path(recipe))
    results, code = [], 0
    for ckpt in ckpts:
        try:
            results.append(_one(common, ckpt, steps))
        except NetgrowError as error:
            if len(ckpts) == 1:
                raise
            print(f"netgrow: {ckpt}: {error}", file=sys.stderr)
            code = code or error.exit_code
    if common.as_json:
        print_json(results[0] if len(ckpts) == 1 else {"command": "apply", "results": results})
    return code


def _one(common: Writing, ckpt: str, steps: Any) -> dict[str, Any]:
    from netgrow_cli.jobs.recipe import apply_recipe
    from netgrow_cli.report.change import print_summary

    with watched(common) as options:
        if common.output is not None:
            options = dataclasses.replace(options, output=Path(common.output))
        output, reports = apply_recipe(Path(ckpt), steps, options)
    if not common.as_json:
        for report in reports:
            print_summary(report)
        if not options.dry_run:
            print(output)
    return _as_json(ckpt, output, [report.as_json() for report in reports])


def _as_json(ckpt: str, output: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """The contract's object: first and last shapes, the worst step's equivalence, and the steps themselves."""
    shapes: dict[str, dict[str, Any]] = {}
    for step in steps:
        for entry in step["tensors"]:
            first = shapes.setdefault(entry["name"], dict(entry))
            first["after"] = entry["after"]
    proofs = [step["equivalence"] for step in steps if step["equivalence"]]
    return {
        "command": "apply",
        "input": ckpt,
        "output": str(output),
        "widths": [width for step in steps for width in step["widths"]],
        "tensors": list(shapes.values()),
        "equivalence": max(proofs, key=lambda proof: proof["max_rel"]) if proofs else None,
        "model_code": [entry for step in steps for entry in step["model_code"]],
        "seed": steps[0]["seed"],
        "seconds": round(sum(step["seconds"] for step in steps), 3),
        "steps": steps,
    }
