"""`netgrow diff A B`: what differs between two checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Annotated

from netgrow_cli.checkpoint import open_checkpoint
from netgrow_cli.checkpoint.compare import compare
from netgrow_cli.commands.declare import argument, given
from netgrow_cli.commands.streams import only_one_standard, readable
from netgrow_cli.report.diff_table import render


def diff(
    a: Annotated[str, argument("A")],
    b: Annotated[str, argument("B")],
    values: Annotated[bool, given("--values", "Compare values too.")] = False,
    as_json: Annotated[bool, given("--json", "One JSON object on standard output.")] = False,
    *,
    key: Annotated[str | None, given("--key", "Where the state dict lies in the checkpoints.")] = None,
) -> int:
    """Layer shapes of two checkpoints side by side; exit 0 the same, 1 different."""
    only_one_standard(a, b)
    with (
        readable(a) as one,
        readable(b) as other,
        open_checkpoint(one, key=key) as left,
        open_checkpoint(other, key=key) as right,
    ):
        report = compare(left, right, values)
    report = dataclasses.replace(
        report, a=dataclasses.replace(report.a, path=a), b=dataclasses.replace(report.b, path=b)
    )
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False, allow_nan=False))
    else:
        print(render(report, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return 0 if report.same else 1
