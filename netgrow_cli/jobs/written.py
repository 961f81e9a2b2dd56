"""What a change wrote, before it gets its name, and the evidence for it: folding back and a comparison.

The two are asked for at the same time, and each has a veto. The comparison takes for granted what folding back finds:
that the tensors that it speaks for came back bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from netgrow_cli.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from netgrow_cli.checkpoint.dtypes import total_bytes
from netgrow_cli.checkpoint.source import Of, source_of
from netgrow_cli.checkpoint.transfer import Advance
from netgrow_cli.errors import NotEquivalent
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.aside import Aside, Relay, aside
from netgrow_cli.jobs.proving import Question, drops_units, edited_by, in_pieces, needs_torch, proof_tolerance, shown
from netgrow_cli.progress import SILENT, Progress
from netgrow_cli.proof.equivalence import Equivalence, require_finite
from netgrow_cli.proof.foldback import FoldBack, fold_back, left_to_probes
from netgrow_cli.surgery.folding import Folds
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.spec import parse_spec

if TYPE_CHECKING:
    from netgrow_cli.jobs.job import Job


@frozen
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
        """The network in it, by its own spec, and the checkpoint."""
        with self._open() as changed:
            yield self._within(changed, source_of), changed

    def _within(self, changed: Checkpoint, of: Of) -> Network:
        foreseen = self._foreseen
        if dict(changed.tensors) != foreseen.infos:
            foreseen = self._network(changed.tensors)
        return foreseen.within(changed, of)

    def _open(self) -> AbstractContextManager[Checkpoint]:
        checkpoint = self.job.checkpoint
        return open_checkpoint(self.path, key=checkpoint.key, prefix=checkpoint.prefix or None)

    @functools.cached_property
    def _foreseen(self) -> Network:
        """The network that is to be in it, which has no numbers yet; what is solved of it need not be solved again."""
        return self._network(self.plan.infos(self.job.topology, self.job.checkpoint.tensors))

    def _network(self, infos: Mapping[str, TensorInfo]) -> Network:
        graph = parse_spec(self.spec_text, f"{self.output} (rewritten spec)").graph(infos)
        return Network.shaped(graph, infos, self.job.options.device, self.job.options.progress)

    @contextlib.contextmanager
    def proof(self) -> Iterator[Proof]:
        """What proves it once it is written; where that takes long, by two more processes that are made now, which
        look at mapped files."""
        relay, apart = Relay(self.job.options.progress.advance), self._takes_long()
        with (
            aside(self._prepare, self._compared_mapped, self._compared_here, wanted=apart) as comparison,
            aside(lambda: None, lambda: self._folded_mapped(relay.advance), self._folded_here, wanted=apart) as folding,
        ):
            yield Proof(self, folding, comparison, relay)

    def stage(self) -> None:
        """Folding back begins."""
        infos = self.plan.infos(self.job.topology, self.job.checkpoint.tensors)
        self.job.options.progress.stage("folding back", total_bytes(infos.values()))

    def _folded_here(self) -> FoldBack:
        self.stage()
        return self._folded(source_of, self.job.options.progress.advance)

    def _folded_mapped(self, advance: Advance) -> FoldBack:
        from netgrow_cli.checkpoint.mapped import mapped_source_of

        return self._folded(mapped_source_of, advance)

    def _folded(self, of: Of, advance: Advance) -> FoldBack:
        """Fold back. Raises NotEquivalent where something does not come back, CheckpointError where it never could."""
        job = self.job
        with self._open() as changed:
            sources = functools.partial(of, job.checkpoint), functools.partial(of, changed)
            found = fold_back(job.topology, self.plan, *sources, self.folds.patches, advance)
        if found.differing:
            require_finite(job.network, found.differing[0])
            raise NotEquivalent(f"folding back does not give {found.differing[0]} back; nothing was written")
        return found

    def _compared_here(self) -> Equivalence:
        return self._compared(source_of, self.job.options.progress)

    def _compared_mapped(self) -> Equivalence:
        from netgrow_cli.checkpoint.mapped import mapped_source_of

        return self._compared(mapped_source_of, SILENT)

    def _compared(self, of: Of, progress: Progress) -> Equivalence:
        """The comparison with the old network, given that folding back finds nothing."""
        with self._open() as changed:
            old, new = self.job.network.within(self.job.checkpoint, of), self._within(changed, of)
            old, new = (dataclasses.replace(network, progress=progress) for network in (old, new))
            return shown(dataclasses.replace(self._question(new), old=old))

    def _prepare(self) -> None:
        """What the comparison needs and can be had before anything is written: the new spec solved, and torch where
        numpy will not do."""
        if needs_torch(self._question(self._foreseen)):
            importlib.import_module("torch")

    def _takes_long(self) -> bool:
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


@frozen
class Proof:
    """Folding back and the comparison, here or aside."""

    written: Written
    folding: Aside[FoldBack]
    comparison: Aside[Equivalence]
    relay: Relay

    def results(self) -> tuple[FoldBack, Equivalence]:
        """Both, once all is written. Raises NotEquivalent, CheckpointError."""
        self.comparison.begin()
        self.folding.begin()
        if self.folding.apart:
            self.written.stage()
        folded = self.folding.result(self.relay.tell)
        self.written.job.options.progress.stage("proving", None)
        return folded, self.comparison.result()
