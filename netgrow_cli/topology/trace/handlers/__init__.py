"""What becomes of each operation of torch, by its plain name. A new one is an entry in one of these files."""

from __future__ import annotations

from netgrow_cli.topology.trace.convert import Handler
from netgrow_cli.topology.trace.handlers import (
    arithmetic,
    axes,
    cells,
    derived_weights,
    experts,
    layers,
    routing,
    space,
)

HANDLERS: dict[str, Handler] = {
    **arithmetic.HANDLERS,
    **layers.HANDLERS,
    **cells.HANDLERS,
    **axes.HANDLERS,
    **space.HANDLERS,
    **routing.HANDLERS,  # (these three stand in front of some of the others)
    **experts.HANDLERS,
    **derived_weights.HANDLERS,
}
