"""What a change wrote, before it gets its name, and the evidence for it: folding back and a comparison.

The two are asked for at the same time, and each has a veto. The comparison takes for granted what folding back finds:
that the tensors that it speaks for came back bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from netgrow_cli.checkpoint import Checkpoint, open_checkpoint
from netgrow_cli.checkpoint.dtypes import total_bytes
from netgrow_cli.checkpoint.source import source_of
from netgrow_cli.errors import NotEquivalent
from netgrow_cli.jobs.proving import Question, drops_units, edited_by, in_pieces, proof_tolerance, shown
from netgrow_cli.proof.equivalence import Equivalence, require_finite
from netgrow_cli.proof.foldback import FoldBack, fold_back, left_to_probes
from netgrow_cli.surgery.folding import Folds
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.spec import parse_spec

if TYPE_CHECKING:
    from netgrow_cli.jobs.job import Job


@dataclasses.dataclass(frozen=True)
class Written:
    """A new checkpoint under its temporary path, with its own spec.

    output: what it will be called, for messages.
    """

    job: Job
    plan: Plan
    folds: Folds
    path: Path
    spec_text: str
    output: Path

    @contextlib.contextmanager
    def reopened(self) -> Iterator[tuple[Network, Checkpoint]]:
        """The network in it, by its own spec solved anew, and the checkpoint."""
        checkpoint = self.job.checkpoint
        with open_checkpoint(self.path, key=checkpoint.key, prefix=checkpoint.prefix or None) as changed:
            graph = parse_spec(self.spec_text, f"{self.output} (rewritten spec)").graph(changed.tensors)
            yield Network.of(graph, changed, self.job.options.device), changed

    def folded(self, changed: Checkpoint) -> FoldBack:
        """Fold back. Raises NotEquivalent where something does not come back, CheckpointError where it never could."""
        job, progress = self.job, self.job.options.progress
        progress.stage("folding back", total_bytes(changed.tensors.values()))
        sources = functools.partial(source_of, job.checkpoint), functools.partial(source_of, changed)
        found = fold_back(job.topology, self.plan, *sources, self.folds.patches, progress.advance)
        if found.differing:
            require_finite(job.network, found.differing[0])
            raise NotEquivalent(f"folding back does not give {found.differing[0]} back; nothing was written")
        return found

    def compared(self) -> Equivalence:
        """The comparison with the old network, given that folding back finds nothing."""
        with self.reopened() as (new, _):
            return shown(self._question(new))

    def prepare(self) -> None:
        """What the comparison needs and can be had before anything is written: torch, where numpy will not do."""
        from netgrow_cli.proof.run_pieces import needs_torch

        edited = self._question(self.job.network).edited
        if edited is None or needs_torch(self.job.network, edited):
            importlib.import_module("torch")

    def takes_long(self) -> bool:
        """Whether the comparison is worth a process of its own: pieces of a large network, and torch not in use yet."""
        if self.job.options.device != "cpu" or self.job.checkpoint.format == "torch":
            return False
        return in_pieces(self._question(self.job.network))

    def _question(self, new: Network) -> Question:
        job, options, plan, patched = self.job, self.job.options, self.plan, self.folds.patches
        asked = options.tolerance
        return Question(
            old=job.network,
            new=new,
            probes=lambda rows: job.probes(rows, options.seed),
            edited=edited_by(job.topology, plan, patched, left_to_probes(job.topology, plan, patched)),
            dropped=drops_units(plan),
            drift=options.allow_drift,
            mode=options.proof,
            rows=options.probes,
            dtype=options.dtype,
            tolerance=asked if asked is not None else proof_tolerance(job, plan.rounds or bool(patched)),
        )
