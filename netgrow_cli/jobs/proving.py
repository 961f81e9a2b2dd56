"""How a change is shown to be none of the function: the whole network on probes, or the pieces that it touches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from netgrow_cli.checkpoint.dtypes import is_float
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.equivalence import EXACT, ROUNDED, Equivalence, compare
from netgrow_cli.proof.pieces import CannotTell, Edited
from netgrow_cli.proof.probes import Probes
from netgrow_cli.proof.units import changed_units
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.solve import PROBE_BATCH

if TYPE_CHECKING:
    from netgrow_cli.jobs.job import Job
    from netgrow_cli.surgery.plan import Plan
    from netgrow_cli.topology.solve import Topology

MODES = ("auto", "pieces", "whole")

WHOLE_BYTES = 1 << 30
"""Networks whose numbers take less than this in the dtype that is computed in are run whole."""

WHOLE_PROBES = 256
"""Rows of probes where nothing else is said."""

FEW_PROBES = 16
"""The same for the certificate of a network that is not small: a wrong layout shows on any input."""

_SIZES = {"float64": 8, "float32": 4}


@frozen
class Question:
    """What is to be shown, and on what.

    edited: what changed; None where that is not known. dropped: units went that lived, or may wake on other inputs,
    so that only the network's own values can tell. drift: the difference that is accepted.
    """

    old: Network
    new: Network
    probes: Callable[[int], Probes]
    edited: Edited | None
    dropped: bool
    drift: float | None
    mode: str
    rows: int | None
    dtype: str
    tolerance: float


def check_mode(mode: str) -> None:
    """Raises UsageError for a kind of proof that there is not."""
    if mode not in MODES:
        raise UsageError(f"--proof {mode}: there are {', '.join(MODES)}")


def edited_by(topology: Topology, plan: Plan, patched: Collection[str], unconfirmed: Collection[str]) -> Edited:
    """What a plan changes. unconfirmed: tensors that folding back does not give back."""
    widths = {topology.widths[change.width].name: changed_units(change) for change in plan.changes}
    edits = frozenset(plan.edits)
    return Edited(
        tensors=edits.union(patched),
        widths=frozenset(widths),
        units={name: units for name, units in widths.items() if units is not None},
        confirmed=edits.difference(unconfirmed, patched),
    )


def proof_tolerance(job: Job, rounds: bool, infos: Mapping[str, TensorInfo] | None = None) -> float:
    """The default tolerance. rounds: whether the change rounds in the checkpoint's dtype (infos: in that of these)."""
    exact = EXACT[job.options.dtype]
    if not rounds:
        return exact
    dtypes = {info.dtype for info in (infos or job.checkpoint.tensors).values()}
    return max([exact, *(ROUNDED[dtype] for dtype in dtypes if dtype in ROUNDED)])


def drops_units(plan: Plan) -> bool:
    """Whether units go that nothing stands in for: that they are dead is known of probes only."""
    gone = [change for change in plan.changes if change.kind in ("prune", "recycle") and change.dropped]
    return bool(gone) or bool(plan.lossy)


def shown(question: Question) -> Equivalence:
    """The comparison, whole or in pieces. Raises UsageError or Refused where what was asked for cannot be."""
    pieces, why = _choice(question)
    if pieces:
        question.old.progress.stage("proving", None)
        found = _in_pieces(question)
        if isinstance(found, Equivalence):
            return dataclasses.replace(found, why=why)
        if question.mode == "pieces":
            raise Refused(f"--proof pieces: {found}; what works: --proof whole")
        why = f"pieces cannot tell: {found}"
    probes = question.probes(question.rows or WHOLE_PROBES)
    whole = compare(question.old, question.new, probes, dtype=question.dtype, tolerance=question.tolerance)
    return dataclasses.replace(whole, why=why)


def in_pieces(question: Question) -> bool:
    """Whether it will be tried in pieces. Raises UsageError where that was asked for and cannot be."""
    return _choice(question)[0]


def _choice(question: Question) -> tuple[bool, str]:
    """Whether to compare in pieces, and why."""
    data = not question.probes(1).random
    size = _computed_bytes(question.old.infos, question.dtype)
    amount = f"its numbers take {size / 1e9:.1f} GB in {question.dtype}"
    if question.mode == "pieces":
        if data:
            raise UsageError("--proof pieces draws its own values; --probe-data goes with --proof whole")
        if question.dropped and question.drift is None:
            raise UsageError(
                "--proof pieces: units were dropped that are dead on what the network computes, not on the random "
                "values that pieces are compared on; --proof whole can tell (or --allow-drift X, per piece)"
            )
        return True, "--proof pieces"
    if question.mode == "whole":
        return False, "--proof whole"
    if data:
        return False, "--probe-data goes through the whole network"
    if question.dropped:
        return False, "units were dropped, which only the whole network's values can tell of"
    if question.edited is None:
        return False, "what was changed is not known"
    return size >= WHOLE_BYTES, amount


def rows_of_certificate(network: Network, dtype: str) -> int:
    """How many rows of probes permuted units are shown on where nothing else is said."""
    return FEW_PROBES if _computed_bytes(network.infos, dtype) >= WHOLE_BYTES else WHOLE_PROBES


def needs_torch(question: Question) -> bool:
    """Whether the comparison will be made in torch, as far as can be told before the new network is written."""
    from netgrow_cli.proof.run_pieces import needs_torch

    edited = question.edited
    return edited is None or needs_torch(question.old, question.new, _probes_of_pieces(question), edited)


def _probes_of_pieces(question: Question) -> Probes:
    large = _computed_bytes(question.old.infos, question.dtype) >= WHOLE_BYTES
    return question.probes(question.rows or (PROBE_BATCH if large else WHOLE_PROBES))


def _in_pieces(question: Question) -> Equivalence | CannotTell:
    """The comparison in pieces, or why there is none."""
    from netgrow_cli.proof.run_pieces import compare_pieces

    if question.edited is None:
        return CannotTell("there is no record of what was changed")
    try:
        return compare_pieces(
            question.old,
            question.new,
            _probes_of_pieces(question),
            question.edited,
            dtype=question.dtype,
            tolerance=question.tolerance,
            accepted=question.drift,
        )
    except CannotTell as reason:
        return reason


def _computed_bytes(infos: Mapping[str, TensorInfo], dtype: str) -> int:
    """What all numbers that are computed with take."""
    own = (info for info in infos.values() if info.tied_to is None and is_float(info.dtype))
    return sum(math.prod(info.shape) for info in own) * _SIZES[dtype]
