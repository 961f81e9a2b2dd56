"""`netgrow check`: a spec against a checkpoint."""

from __future__ import annotations

import sys
from typing import Annotated

from netgrow_cli.commands.common import Checkpoint, Computing, given, print_json, readable, takes, watched


@takes(Computing)
def check(
    common: Computing,
    ckpt: Checkpoint,
    model: Annotated[
        str | None, given("--model", "Compare with the real model code too: package.module:factory.", metavar="M")
    ] = None,
) -> int:
    """Check a spec: does it fit, and does permuting the units of every width leave the outputs unchanged?"""
    from netgrow_cli.jobs.job import opened
    from netgrow_cli.jobs.proving import rows_of_certificate
    from netgrow_cli.proof.equivalence import EXACT
    from netgrow_cli.proof.permutation import certify
    from netgrow_cli.report.check import CONSTANT, check_text
    from netgrow_cli.topology.solve import require_complete

    with readable(ckpt) as path, watched(common) as options, opened(path, options) as job:
        require_complete(job.topology)
        tolerance = common.tolerance if common.tolerance is not None else EXACT.get(common.dtype, 1e-10)
        probes = job.probes(common.probes or rows_of_certificate(job.network, common.dtype), common.seed)
        found = certify(job.network, probes, seed=common.seed, dtype=common.dtype, tolerance=tolerance)
        real = None
        if model is not None:
            from netgrow_cli.proof.real_model import compare_with_model

            real = compare_with_model(
                model, path, common.spec, job.network, probes, dtype=common.dtype, tolerance=tolerance
            )
    for line in job.found.assumed:
        print(f"assumed: {line}", file=sys.stderr)
    if found.equivalence.constant:
        print(f"warning: {CONSTANT}", file=sys.stderr)
    if common.as_json:
        result = {
            "spec": job.found.origin,
            "permuted": found.widths,
            "equivalence": found.equivalence.as_json(),
            "culprits": list(found.culprits),
            "model": real.as_json() if real is not None else None,
            "frozen": [{"name": info.name, "why": info.frozen} for info in job.topology.widths.values() if info.frozen],
        }
        print_json(result)
    else:
        print(check_text(job, found, real))
    return 0 if found.equivalence.equal and (real is None or real.equal) else 1
