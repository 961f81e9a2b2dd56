"""`netgrow recycle`: dead units become copies of live ones."""

from __future__ import annotations

from typing import Annotated

from netgrow_cli.commands.common import Checkpoint, Layer, WidthName, Writing, given, run_change, takes
from netgrow_cli.surgery.change import DEFAULT_NOISE


@takes(Writing)
def recycle(
    common: Writing,
    ckpt: Checkpoint,
    layer: Layer = None,
    width: WidthName = None,
    noise: Annotated[
        float, given("--noise", "Noise that cancels between copies, relative to the outgoing weights.", metavar="X")
    ] = DEFAULT_NOISE,
) -> int:
    """Make dead units copies of live ones, which share their outgoing weights with them. Shapes stay."""
    from netgrow_cli.jobs.recycling import recycling

    return run_change(common, ckpt, "recycle", recycling(layer or [], width or [], noise=noise))
