"""`netgrow scores`: one score a unit, as bars in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from netgrow_cli.commands.common import (
    By,
    Checkpoint,
    Computing,
    Layer,
    ScoreFile,
    WidthName,
    given,
    print_json,
    readable,
    takes,
    watched,
)


@takes(Computing)
def scores(
    common: Computing,
    ckpt: Checkpoint,
    layer: Layer = None,
    width: WidthName = None,
    by: By = None,
    scores: ScoreFile = None,
    csv: Annotated[bool, given("--csv", "Lines of width,unit,score on standard output.")] = False,
) -> int:
    """Show one score for each unit of the named layers, or of every width that may change."""
    from netgrow_cli.jobs.job import opened
    from netgrow_cli.jobs.scoring import meaning, scored
    from netgrow_cli.report.bars import bars
    from netgrow_cli.surgery.select import free_widths, targets

    with readable(ckpt) as path, watched(common) as options, opened(path, options) as job:
        if layer or width:
            infos: Any = free_widths(targets(job.topology, layer or [], width or []))
        else:
            infos = [info for info in job.topology.widths.values() if info.frozen is None]
        result = scored(job, by, [info.width.id for info in infos], scores)
        found = {info.name: result.values[info.width.id].tolist() for info in infos}
    for line in job.found.assumed:
        print(f"assumed: {line}", file=sys.stderr)
    print(f"{result.by}: {meaning(result.by)}; {result.evidence.text()}", file=sys.stderr)
    if result.evidence.random:
        print("warning: units may do otherwise on data than on random probes; pass --probe-data FILE", file=sys.stderr)
    if common.as_json:
        widths = [{"name": name, "scores": values} for name, values in found.items()]
        print_json({"by": result.by, "evidence": result.evidence.as_json(), "widths": widths})
    elif csv:
        print("width,unit,score")
        for name, values in found.items():
            for unit, value in enumerate(values):
                print(f"{name},{unit},{value:.9g}")
    else:
        print("\n\n".join(bars(name, values) for name, values in found.items()))
    return 0
