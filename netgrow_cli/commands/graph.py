"""`netgrow graph`: a picture of the topology."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from netgrow_cli.commands.common import STANDARD, Checkpoint, Common, given, options_of, print_json, readable, takes
from netgrow_cli.errors import UsageError


@takes(Common)
def graph(
    common: Common,
    ckpt: Checkpoint,
    output: Annotated[
        str | None, given(("-o", "--output"), "Where to: .svg, .dot (Graphviz) or .mmd (Mermaid).", metavar="FILE")
    ] = None,
    force: Annotated[bool, given("--force", "Replace an output that exists.")] = False,
) -> int:
    """Draw the topology: layers, what they read, the widths they make. Without -o, Mermaid text."""
    from netgrow_cli.checkpoint import staged_outputs
    from netgrow_cli.jobs.job import opened
    from netgrow_cli.report.picture import as_dot, as_mermaid, as_svg

    forms = {".svg": as_svg, ".dot": as_dot, ".gv": as_dot, ".mmd": as_mermaid, ".md": as_mermaid}
    target = Path(output) if output not in (None, STANDARD) else None
    if target is not None and target.suffix not in forms:
        raise UsageError(f"-o {output}: the ending should be one of {', '.join(forms)}")
    with readable(ckpt) as path, opened(path, options_of(common)) as job:
        text = (forms[target.suffix] if target is not None else as_mermaid)(job.topology)
        layers = len(job.topology.graph.nodes)
    if target is not None:
        with staged_outputs([target], force=force) as staged:
            staged.paths[0].write_text(text, encoding="utf-8")
            staged.commit()
    if common.as_json:
        print_json({"command": "graph", "input": ckpt, "output": output, "layers": layers})
    else:
        print(text if target is None else target, end="" if target is None else "\n")
    return 0
