"""`netgrow expand`: fresh units, the function unchanged."""

from __future__ import annotations

from typing import Annotated, cast

from netgrow_cli.commands.common import Checkpoint, Layer, RoundTo, WidthName, Writing, given, run_change, takes
from netgrow_cli.errors import UsageError

INITS = ("match", "kaiming", "antisymmetric")


@takes(Writing)
def expand(
    common: Writing,
    ckpt: Checkpoint,
    layer: Layer = None,
    width: WidthName = None,
    add: Annotated[int | None, given("--add", "Units to add.", metavar="N")] = None,
    to: Annotated[int | None, given("--to", "Units afterwards.", metavar="N")] = None,
    times: Annotated[float | None, given("--times", "Units afterwards, as a multiple.", metavar="X")] = None,
    init: Annotated[
        str, given("--init", "How fresh units start: match (as the layer's others), kaiming, antisymmetric.")
    ] = "match",
    round_to: RoundTo = None,
) -> int:
    """Add units to a layer: random incoming weights, zero outgoing ones. The function stays the same."""
    from netgrow_cli.jobs.growing import expanding
    from netgrow_cli.surgery.change import Init

    if init not in INITS:
        raise UsageError(f"--init {init}: there are {', '.join(INITS)}")
    select = expanding(layer or [], width or [], add=add, to=to, times=times, init=cast(Init, init), round_to=round_to)
    return run_change(common, ckpt, "expand", select)
