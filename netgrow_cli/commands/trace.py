"""`netgrow trace SOURCE -o SPEC`: a spec from model code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from netgrow_cli.commands.common import STANDARD, argument, given
from netgrow_cli.report.console import few


def trace(
    source: Annotated[str, argument("SOURCE", "package.module:factory, or a folder with a config.json.")],
    output: Annotated[str, given(("-o", "--output"), "Where to write the spec; - for standard output.")],
    inputs: Annotated[
        list[str] | None,
        given("--input", "An argument: [name=]dtype[shape], int64[2,9]:90 for integers below 90.", metavar="FORM"),
    ] = None,
    force: Annotated[bool, given("--force", "Replace an output that exists.")] = False,
) -> int:
    """Trace model code into a spec. Operations without a rule freeze what they touch and are listed."""
    from netgrow_cli.checkpoint import staged_outputs
    from netgrow_cli.topology.trace.inputs import parse_input
    from netgrow_cli.topology.trace.source import trace_source

    traced = trace_source(source, [parse_input(text) for text in inputs or []])
    if output == STANDARD:
        print(traced.text, end="")
    else:
        with staged_outputs([Path(output)], force=force) as staged:
            staged.paths[0].write_text(traced.text, encoding="utf-8")
            staged.commit()
        print(output)
    for warning in traced.warnings:
        print(warning, file=sys.stderr)
    for call, count in traced.unknown.items():
        lost = traced.lost[call]
        cost = f"it freezes {few(lost)}" if lost else "it costs no width"
        print(f"no rule for {call} ({count} times): {cost}", file=sys.stderr)
    return 0
