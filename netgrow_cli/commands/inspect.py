"""`netgrow inspect`: tensors, layouts, widths; no torch for safetensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgrow_cli.commands.common import Checkpoint as CheckpointArgument
from netgrow_cli.commands.common import Common, print_json, readable, takes
from netgrow_cli.commands.streams import as_typed
from netgrow_cli.errors import NetgrowError

if TYPE_CHECKING:
    from netgrow_cli.checkpoint import Checkpoint
    from netgrow_cli.topology.solve import Topology


@takes(Common)
def inspect(common: Common, ckpt: CheckpointArgument) -> int:
    """Show tensors with their layouts, and widths: who produces them, who reads them, what is frozen and why."""
    from netgrow_cli.checkpoint import checkpoint_path, open_checkpoint
    from netgrow_cli.report.inspection import inspection_json, inspection_text
    from netgrow_cli.topology.discover import place_of_tensors

    with readable(ckpt) as stated:
        path = checkpoint_path(stated)
        key, prefix = place_of_tensors(path, common.spec, common.key, common.prefix)
        with open_checkpoint(path, key=key, prefix=prefix) as checkpoint:
            topology, origin = _topology(checkpoint, path, common, ckpt)
            result: Any = inspection_json(checkpoint, topology, origin)
            if common.as_json:
                print_json(result)
            else:
                print(inspection_text(checkpoint, topology, origin))
    return 0


def _topology(checkpoint: Checkpoint, path: Path, common: Common, typed: str) -> tuple[Topology | None, str]:
    """The topology and where its spec came from; without a spec that was asked for, tensors alone will do."""
    from netgrow_cli.topology.discover import find_spec
    from netgrow_cli.topology.solve import solve

    try:
        found = find_spec(checkpoint, path, common.spec, activation=common.activation)
    except NetgrowError as error:
        if common.spec is not None:
            raise
        print(f"no layouts: {as_typed(str(error), typed, path)}", file=sys.stderr)
        return None, ""
    for line in found.assumed:
        print(f"assumed: {line}", file=sys.stderr)
    topology = solve(found.graph(checkpoint), checkpoint.tensors)
    if topology.unclaimed:
        shown = ", ".join(topology.unclaimed[:5]) + (", ..." if len(topology.unclaimed) > 5 else "")
        print(f"warning: no layer of the spec has {shown}", file=sys.stderr)
    return topology, found.origin
