"""`netgrow verify`: are two checkpoints the same function?"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from netgrow_cli.commands.common import (
    Proving,
    argument,
    given,
    only_one_standard,
    print_json,
    readable,
    takes,
    watched,
)


@takes(Proving)
def verify(
    common: Proving,
    a: Annotated[str, argument("A", "The old checkpoint.")],
    b: Annotated[str, argument("B", "The new checkpoint.")],
    model: Annotated[
        str | None, given("--model", "Compare in the real model code: package.module:factory.", metavar="M")
    ] = None,
) -> int:
    """Compare two checkpoints on probes; exit 0 if equal. With a record of the change, fold it back first."""
    from netgrow_cli.jobs.verification import compare_checkpoints
    from netgrow_cli.report.check import CONSTANT, verify_text

    only_one_standard(a, b)
    with readable(a) as old, readable(b) as new, watched(common) as options:
        equivalence, folded = compare_checkpoints(old, new, options, model)
    if common.as_json:
        result: dict[str, Any] = equivalence.as_json()
        result["folded_back"] = None if folded is None else {"exact": folded.exact, "differing": folded.differing}
        print_json(result)
    else:
        print(verify_text(equivalence, folded))
    if equivalence.constant:
        print(f"warning: {CONSTANT}", file=sys.stderr)
    return 0 if equivalence.equal else 1
