"""Text of `check` and `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netgrow_cli.jobs.job import Job
    from netgrow_cli.proof.equivalence import Equivalence
    from netgrow_cli.proof.foldback import FoldBack
    from netgrow_cli.proof.permutation import Certificate

CONSTANT = "the outputs are the same on all probes, so that this shows little; pass --probe-data"


def check_text(job: Job, found: Certificate, real: Equivalence | None = None) -> str:
    """What the certificate says, and what is frozen."""
    count = len(job.checkpoint.tensors)
    lines = [f"spec: {job.found.origin} fits {count} tensors"]
    result = found.equivalence
    outcome = "unchanged" if result.equal else "CHANGED"
    lines.append(
        f"permutation certificate: {found.widths} widths permuted at random, outputs {outcome} "
        f"(largest difference {result.max_rel:.1e} of their size, {result.probes} {result.origin} probes, "
        f"{result.dtype})"
    )
    if real is not None:
        same = "the same" if real.equal else "NOT the same"
        lines.append(
            f"real model code: the spec and the model compute {same} (largest difference {real.max_rel:.1e} of the "
            "outputs' size)"
        )
    if not result.equal:
        names = ", ".join(found.culprits) or "none alone, only together"
        lines.append(f"widths that change the outputs when permuted alone: {names}")
        lines.append("the spec misses a layer that reads them, or couples what is not coupled")
    lines.extend(
        f"frozen: {info.name} ({info.size}): {info.frozen}" for info in job.topology.widths.values() if info.frozen
    )
    return "\n".join(lines)


def verify_text(found: Equivalence, folded: FoldBack | None) -> str:
    """Whether two checkpoints are the same function, and how that is known."""
    lines = []
    if folded is not None and folded.whole:
        lines.append(f"folded back by the record: all {folded.exact} tensors come back bit for bit")
    elif folded is not None:
        left = f", {len(folded.left)} left to the probes" if folded.left else ""
        lines.append(f"folded back by the record: {folded.exact} tensors exact, {len(folded.differing)} differ{left}")
    word = "equal" if found.equal else "DIFFERENT"
    lines.append(
        f"{word}: outputs differ by {found.max_rel:.3g} of their size, {found.max_abs:.3g} absolutely "
        f"(tolerance {found.tolerance:g}, {found.probes} {found.origin} probes, {found.dtype})"
    )
    if found.pieces is not None:
        where = f", worst in {found.where}" if found.where else ""
        lines.append(
            f"compared in {found.pieces} pieces, with random values at the border of each ({found.why}){where}"
        )
    elif found.why.startswith("pieces"):
        lines.append(f"compared as a whole: {found.why}")
    return "\n".join(lines)
