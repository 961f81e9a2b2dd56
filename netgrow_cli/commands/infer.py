"""`netgrow infer`: a spec drafted from names and shapes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from netgrow_cli.commands.common import STANDARD, Checkpoint, given, print_json, readable
from netgrow_cli.errors import UsageError


def infer(
    ckpt: Checkpoint,
    output: Annotated[str | None, given(("-o", "--output"), "Where to write the spec.")] = None,
    activation: Annotated[
        str, given("--activation", "The function between layers, where you know it: relu, gelu, ...", metavar="OP")
    ] = "per_unit",
    force: Annotated[bool, given("--force", "Replace an output that exists.")] = False,
    as_json: Annotated[bool, given("--json", "One JSON object on standard output.")] = False,
    key: Annotated[str | None, given("--key", "Where the state dict lies in the checkpoint.")] = None,
    prefix: Annotated[str | None, given("--prefix", "What stands before every tensor's name.")] = None,
) -> int:
    """Draft a spec where names and shapes leave one reading: a plain chain of layers."""
    from netgrow_cli.checkpoint import open_checkpoint, staged_outputs
    from netgrow_cli.topology.draft import draft_spec
    from netgrow_cli.topology.ops import OPS, canonical
    from netgrow_cli.topology.solve import solve
    from netgrow_cli.topology.spec import parse_spec

    if canonical(activation) not in OPS:
        raise UsageError(f"--activation {activation}: there is no such operation")
    with readable(ckpt) as path, open_checkpoint(path, key=key, prefix=prefix) as checkpoint:
        draft = draft_spec(checkpoint.tensors, str(path), canonical(activation))
        solve(parse_spec(draft.text, str(path)).graph(checkpoint.tensors), checkpoint.tensors)
    if output is not None and output != STANDARD:
        target = Path(output)
        if not target.name:
            raise UsageError(f"-o {output or repr(output)} names no file")
        if ckpt != STANDARD and target.exists() and target.samefile(ckpt):
            raise UsageError(f"-o {output} is the checkpoint itself; name a YAML file")
        with staged_outputs([target], force=force) as staged:
            staged.paths[0].write_text(draft.text, encoding="utf-8")
            staged.commit()
    for line in draft.assumed:
        print(f"assumed: {line}", file=sys.stderr)
    if as_json:
        print_json({"spec": draft.text, "assumed": list(draft.assumed), "output": output})
    else:
        print(draft.text if output in (None, STANDARD) else output, end="" if output in (None, STANDARD) else "\n")
    return 0
