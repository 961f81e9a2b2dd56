"""`netgrow recycle`: dead units become copies of live ones, or fresh."""

from __future__ import annotations

from typing import Annotated, cast

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
from netgrow_cli.commands.expand import INITS
from netgrow_cli.errors import UsageError


@takes(Choosing)
def recycle(
    common: Choosing,
    ckpt: Checkpoint,
    layer: Layer = None,
    width: WidthName = None,
    units: Units = None,
    proven: Annotated[bool, given("--proven", "Only units that are dead for every input, by bounds.")] = False,
    dormant: Annotated[
        float | None,
        given("--dormant", "Units with at most TAU of their layer's mean activation (ReDo).", metavar="TAU"),
    ] = None,
    fresh: Annotated[bool, given("--fresh", "Start units anew instead: random in, zero out.")] = False,
    init: Annotated[
        str | None, given("--init", "How fresh units start: match (as the layer's others), kaiming, antisymmetric.")
    ] = None,
    noise: Annotated[
        float | None,
        given("--noise", "Noise that cancels between copies, relative to the outgoing weights (0.2).", metavar="X"),
    ] = None,
) -> int:
    """Replace dead units by copies of live ones, or by fresh ones. Shapes stay; live units need --allow-drift."""
    from netgrow_cli.jobs.recycling import recycling
    from netgrow_cli.surgery.change import Init

    chosen, every = parse_units(units)
    if every and not fresh:
        raise UsageError("--units all would leave no unit to copy; name some, or start all anew with --fresh")
    if init is not None and init not in INITS:
        raise UsageError(f"--init {init}: there are {', '.join(INITS)}")
    select = recycling(
        layer or [],
        width or [],
        units=chosen,
        every=every,
        proven=proven,
        dormant=dormant,
        fresh=fresh,
        init=cast(Init | None, init),
        noise=noise,
        choice=common.choice,
    )
    return run_change(common, ckpt, "recycle", select)
