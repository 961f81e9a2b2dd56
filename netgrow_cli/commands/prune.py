"""`netgrow prune`: units go."""

from __future__ import annotations

from typing import Annotated

from netgrow_cli.commands.common import (
    By,
    Checkpoint,
    Layer,
    Units,
    WidthName,
    Writing,
    given,
    parse_units,
    run_change,
    takes,
)
from netgrow_cli.errors import UsageError


@takes(Writing)
def prune(
    common: Writing,
    ckpt: Checkpoint,
    layer: Layer = None,
    width: WidthName = None,
    units: Units = None,
    dead: Annotated[bool, given("--dead", "Units that are constant on the probes; constants are folded.")] = False,
    duplicates: Annotated[bool, given("--duplicates", "Units that copy others; merged into them.")] = False,
    lowest: Annotated[int | None, given("--lowest", "The K units with the lowest scores.", metavar="K")] = None,
    fraction: Annotated[float | None, given("--fraction", "This share of the units.", metavar="F")] = None,
    below: Annotated[float | None, given("--below", "Units with a score below C.", metavar="C")] = None,
    by: By = "weight",
) -> int:
    """Remove units. Exact for dead units and duplicates; live ones need --allow-drift."""
    from netgrow_cli.jobs.shrinking import pruning

    chosen, every = parse_units(units)
    if every:
        raise UsageError("--units all would leave no unit; name the ones to remove")
    select = pruning(
        layer or [],
        width or [],
        units=chosen,
        lowest=lowest,
        fraction=fraction,
        below=below,
        dead=dead,
        duplicates=duplicates,
        by=by,
    )
    return run_change(common, ckpt, "prune", select)
