"""`netgrow split`: units become several, the function unchanged."""

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
from netgrow_cli.surgery.change import DEFAULT_NOISE


@takes(Choosing)
def split(
    common: Choosing,
    ckpt: Checkpoint,
    layer: Layer = None,
    width: WidthName = None,
    units: Units = None,
    noise: Annotated[
        float, given("--noise", "Noise that cancels between copies, relative to the outgoing weights.", metavar="X")
    ] = DEFAULT_NOISE,
    ways: Annotated[int, given("--ways", "How many units each becomes.", metavar="K")] = 2,
) -> int:
    """Split units: copies share the outgoing weights, with noise that cancels. The function stays the same."""
    from netgrow_cli.jobs.growing import splitting

    chosen, every = parse_units(units)
    select = splitting(
        layer or [], width or [], units=chosen, every=every, noise=noise, ways=ways, choice=common.choice
    )
    return run_change(common, ckpt, "split", select)
