"""`netgrow prune`: units go."""

from __future__ import annotations

from typing import Annotated

from netgrow_cli.commands.common import (
    Checkpoint,
    Choosing,
    Layer,
    Units,
    WidthName,
    given,
    parse_units,
    run_change,
    takes,
)
from netgrow_cli.errors import UsageError


@takes(Choosing)
def prune(
    common: Choosing,
    ckpt: Checkpoint,
    layer: Layer = None,
    width: WidthName = None,
    units: Units = None,
    dead: Annotated[bool, given("--dead", "Units that are constant on the probes; constants are folded.")] = False,
    duplicates: Annotated[bool, given("--duplicates", "Units that copy others; merged into them.")] = False,
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
        dead=dead,
        duplicates=duplicates,
        choice=common.choice,
    )
    return run_change(common, ckpt, "prune", select)
