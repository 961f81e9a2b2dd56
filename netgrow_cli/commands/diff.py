"""`netgrow diff A B`: what differs between two checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from netgrow_cli.checkpoint import open_checkpoint
from netgrow_cli.checkpoint.compare import compare
from netgrow_cli.commands.streams import only_one_standard, readable
from netgrow_cli.report.diff_table import render


def diff(a: str, b: str, values: bool = False, as_json: bool = False, *, key: str | None = None) -> int:
    """Print what differs; the exit code is 0 for the same and 1 for different.

    values: also compare the values of tensors of the same shape and dtype.
    key: where the state dict lies, for torch files in which that is not clear.
    """
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
