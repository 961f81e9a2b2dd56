"""Repair of a lossy prune, from a job's probes: which rows are fitted on, which ones judge, what is reported.

Random probes to fit on are others than the proof's. Of the user's rows every fifth is held out: neither fitted on
nor left out of the proof, which runs on these alone.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.proving import WHOLE_PROBES
from netgrow_cli.proof.drift import Drift, drifts
from netgrow_cli.proof.probes import Probes
from netgrow_cli.surgery.compensation import NEEDED, Refit, Repair, compensate, pruned_network
from netgrow_cli.surgery.readers import Left, find_readers
from netgrow_cli.surgery.rewrite import rewrite_spec
from netgrow_cli.topology.spec import parse_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netgrow_cli.checkpoint.types import TensorInfo
    from netgrow_cli.jobs.job import Job
    from netgrow_cli.surgery.folding import Folds
    from netgrow_cli.surgery.plan import Plan
    from netgrow_cli.topology.graph import Graph
    from netgrow_cli.topology.network import Network

FIT_PROBES = 8192
"""Random rows to fit on, where nothing else is said."""


@frozen
class Compensation:
    """What was refitted, and what it was good for.

    readers: refitted layers, in a dry run those that would be. rows: probes that were fitted on, of `origin`.
    before, after: drift without and with it on `judged` other rows; None where nothing was run, or not asked for.
    """

    readers: tuple[Refit, ...]
    left: tuple[Left, ...]
    rows: int
    origin: str
    before: Drift | None = None
    after: Drift | None = None
    judged: int = 0

    def as_json(self) -> dict[str, Any]:
        """The key `compensation` of the command line's JSON."""
        kept = [field.name for field in dataclasses.fields(Refit)] if self.rows else ["layer", "tensors"]
        return {
            "readers": [{name: getattr(refit, name) for name in kept} for refit in self.readers],
            "left": [dataclasses.asdict(one) for one in self.left],
            "rows": self.rows,
            "origin": self.origin,
            "held_out": self.judged,
            "drift_before": self.before.as_json() if self.before else None,
            "drift_after": self.after.as_json() if self.after else None,
        }

    def recorded(self) -> dict[str, Any]:
        """What goes into the record of the change: the tensors themselves are among those that were patched."""
        layers = {refit.layer: list(refit.tensors) for refit in self.readers}
        return {"layers": layers, "rows": self.rows, "origin": self.origin}

    def warnings(self) -> list[str]:
        """What people should know of it."""
        found = []
        thin = [refit for refit in self.readers if refit.thin and self.rows]
        if thin:
            named = ", ".join(f"{refit.layer} ({refit.samples} for {refit.features})" for refit in thin[:4])
            found.append(f"refitted on fewer than {NEEDED} samples for each feature, which overfits: {named}; {_MORE}")
        if self.readers and self.rows and self.origin == "random":
            found.append(
                f"refitted on {self.rows} random probes, which may be unlike your data: pass --probe-data FILE"
            )
        if self.before is not None and self.after is not None:
            one, other = self.before, self.after
            worse = [
                f"{what} {before:.3g} → {after:.3g}"
                for what, before, after in (
                    ("mean-square", one.rms_rel, other.rms_rel),
                    ("largest", one.max_rel, other.max_rel),
                )
                if after > before
            ]
            if worse:
                found.append(f"--compensate made the drift on held-out probes larger: {', '.join(worse)}")
        return found


_MORE = "more rows by --probes N or --probe-data FILE"


def planned(job: Job, plan: Plan) -> Compensation:
    """What would be refitted; nothing is run."""
    readers, left = find_readers(job.network, plan)
    fits = (Refit(reader.node.name, reader.tensors, 0, 0, 0.0) for reader in readers)
    return Compensation(tuple(fits), tuple(left), 0, _origin(job))


def compensated(job: Job, plan: Plan, folds: Folds) -> tuple[Job, Folds, Compensation]:
    """The job with the rows that judge as its probes, the new patches, and the report. Raises Refused."""
    unknown = next((node.name for node in job.network.graph.nodes if node.op == "per_unit"), None)
    if unknown is not None:
        raise Refused(
            f"--compensate runs the network, and the function in {unknown!r} is not known, since the spec was drafted "
            "from names and shapes; name it (--activation relu, or a spec with --spec)"
        )
    judge = dataclasses.replace(job, held_out=True)
    if job.options.dry_run:
        return judge, folds, planned(job, plan)
    repair = repaired(job, job.network, plan, folds)
    return judge, repair.folds, judged(judge, plan, folds, repair)


def repaired(job: Job, network: Network, plan: Plan, folds: Folds) -> Repair:
    """A network (the job's, or one that goes along with it) with its readers refitted."""
    return compensate(network, _graph_of(job, plan), plan, folds, fitted_on(job), dtype=job.options.dtype)


def judged(job: Job, plan: Plan, folds: Folds, repair: Repair) -> Compensation:
    """A repair with its drift on rows that it was not fitted on. folds: what is there without it."""
    fitted = fitted_on(job)
    found = Compensation(repair.refits, repair.left, fitted.rows, fitted.origin)
    if not job.options.verify:
        return found
    graph, probes = _graph_of(job, plan), judging(job)
    networks = [pruned_network(job.network, graph, plan, each.patches) for each in (folds, repair.folds)]
    before, after = drifts(job.network, networks, probes, dtype=job.options.dtype)
    return dataclasses.replace(found, before=before, after=after, judged=probes.rows)


def fitted_on(job: Job) -> Probes:
    """The rows that are fitted on. Raises UsageError where there are too few to hold some out."""
    found = dataclasses.replace(job, held_out=False).probes(job.options.probes or FIT_PROBES, job.options.seed + 2)
    if not found.random and judging(job).rows == 0:
        raise UsageError(f"{found.origin}: {found.rows} rows are too few for --compensate, which holds every fifth out")
    return found


def judging(job: Job) -> Probes:
    """The rows that judge, which are those of the proof."""
    return dataclasses.replace(job, held_out=True).probes(job.options.probes or WHOLE_PROBES, job.options.seed)


def _origin(job: Job) -> str:
    return job.options.probe_data.name if job.options.probe_data is not None else "random"


def _graph_of(job: Job, plan: Plan) -> functools.partial[Graph]:
    text = rewrite_spec(job.found.spec, job.network.graph, plan)
    return functools.partial(_graph, text, job.path.name)


def _graph(text: str, name: str, infos: Mapping[str, TensorInfo]) -> Graph:
    return parse_spec(text, f"{name} (rewritten spec)").graph(infos)
