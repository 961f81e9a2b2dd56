"""What is done to one model: trace it, certify the trace, change every width and load the results into the model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import netgrow_cli
from benchmarks.zoo.entry import Entry
from benchmarks.zoo.weights import enliven, silence
from netgrow_cli.checkpoint.dtypes import total_bytes
from netgrow_cli.errors import NetgrowError, Refused, first_line
from netgrow_cli.jobs.job import Job, Options, Selection, change, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.surgery.change import WidthChange, expand, prune, split
from netgrow_cli.surgery.plan import Plan, make_plan
from netgrow_cli.surgery.select import keeping_ties, size_class
from netgrow_cli.topology.layout import Fixed, leaves
from netgrow_cli.topology.solve import Topology
from netgrow_cli.topology.trace.inputs import parse_input
from netgrow_cli.topology.trace.source import trace_model

MORE = 2
"""Units that are added to, and split in, each width."""

LARGEST = 8 << 30
"""Bytes of a changed checkpoint. (Heads of twice the number and twice the size make a stream four times as wide; where
that is too much, several checkpoints are made.)"""

PRUNED = 8
"""Widths that are pruned of a dead unit."""

PATIENCE = 90.0
"""For how many seconds a change of many widths is taken apart to find those that do not work."""

NOISE = 0.2

SET_BY_FIT = ("eps", "groups", "normalized_shape")


@dataclasses.dataclass(frozen=True)
class Changed:
    """What became of one kind of change over the widths of a model.

    asked: how many may change by the topology. done: how many did, in the real model, with equal outputs.
    refused: by reason, how many widths netgrow refused to change so. coded: by width, what the model's own code says to
    a size that is equal by the spec, but that `fit` cannot set, and where it stands. failed: by width, what went wrong.
    plans: in how many plans those that went well were changed. worst: the largest relative difference.
    """

    asked: int
    done: int
    refused: dict[str, int]
    coded: dict[str, str]
    failed: dict[str, str]
    plans: int
    worst: float


@dataclasses.dataclass(frozen=True)
class Study:
    """All that is known of one model after the study.

    share: of the parameters, how many lie in a width that may change. frozen: by reason, the share of the parameters
    that lie in none. unknown: operations without a rule. graph: how far the spec's outputs are from the model's.
    """

    name: str
    library: str
    parameters: int
    layers: int
    widths: int
    share: float
    frozen: dict[str, float]
    unknown: dict[str, int]
    graph: float
    certificate: float
    culprits: list[str]
    changes: dict[str, Changed]
    trace_seconds: float
    solve_seconds: float
    seconds: float


PROVEN = 50_000_000
"""Parameters up to which netgrow's own proof runs too, beside the comparison in the real model."""

Class = tuple[int, ...]
"""Widths that change together, by id: their sizes are tied."""


def study(entry: Entry, *, most_widths: int | None = None) -> Study:
    """Study one model. most_widths: change only so many, spread over the model."""
    began = time.perf_counter()
    torch.manual_seed(0)
    model = enliven(entry.make().eval())
    given = [parse_input(text) for text in entry.inputs]
    traced = trace_model(model, given, origin=entry.name, options=dict(entry.options))
    traced_after = time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        bench = _Bench(entry, model.double(), Path(folder), _taken_in(traced.text))
        solving = time.perf_counter()
        with opened(bench.checkpoint, bench.options()) as job:
            solved_after = time.perf_counter() - solving
            topology = job.topology
            graph = bench.prepare(job)
            log(f"{entry.name}: traced in {traced_after:.1f} s, solved in {solved_after:.1f} s, graph {graph:.0e}")
            certificate = certify(job.network, job.probes(entry.batch, 0), seed=0, dtype="float64", tolerance=1e-9)
            share, frozen = _shares(topology, model.state_dict())
            classes = _spread(_classes(topology), most_widths)
            wanted = {command: _wanted(job, command, classes) for command in ("expand", "split")}
        log(f"share {share:.4f} {frozen}")
        for command, found in wanted.items():
            log(f"{command} refused: {dict(found[1])}")
        asked = sum(map(len, classes))
        changes = {
            command: bench.settle(command, [ones], refused, asked) for command, (ones, refused) in wanted.items()
        }
        changes["prune"] = _pruned(bench, classes)
    return Study(
        name=entry.name,
        library=entry.library,
        parameters=sum(tensor.numel() for tensor in model.parameters()),
        layers=len(topology.graph.nodes),
        widths=sum(info.frozen is None for info in topology.widths.values()),
        share=share,
        frozen=frozen,
        unknown=dict(traced.unknown),
        graph=graph,
        certificate=certificate.equivalence.max_rel,
        culprits=list(certificate.culprits),
        changes=changes,
        trace_seconds=round(traced_after, 2),
        solve_seconds=round(solved_after, 2),
        seconds=round(time.perf_counter() - began, 1),
    )


def _taken_in(text: str) -> str:
    """The spec with the line that names tensors which nothing reads taken in."""
    lines = text.splitlines()
    stated = next((line for line in lines if line.startswith("# ignore: ")), None)
    if stated is None:
        return text
    return "\n".join([line for line in lines if not line.startswith("ignore:")] + [stated.removeprefix("# ")]) + "\n"


# -- what may change ---------------------------------------------------------------------------------


def _classes(topology: Topology) -> list[Class]:
    """The widths of parameters that may change, those of tied sizes together."""
    found: dict[int, Class] = {}
    for info in topology.widths.values():
        used = info.producers or info.consumers or info.per_unit
        if info.frozen is None and used and info.width.id not in found:
            together = tuple(sorted(size_class(topology, info.width.id, strict=False)))
            found.update(dict.fromkeys(together, together))
    return list(dict.fromkeys(found.values()))


def _spread(classes: Sequence[Class], most: int | None) -> list[Class]:
    if most is None or len(classes) <= most:
        return list(classes)
    return [classes[n * len(classes) // most] for n in range(most)]


def _shares(topology: Topology, state: Mapping[str, torch.Tensor]) -> tuple[float, dict[str, float]]:
    """The share of the parameters that lie in a width that may change; of the others, why not."""
    total, free, held = 0, 0, Counter[str]()
    for name, tensor in state.items():
        if topology.aliases[name] != name or not tensor.is_floating_point():
            continue
        total += tensor.numel()
        if name not in topology.tensors:
            held["no layer reads it"] += tensor.numel()
            continue
        infos = [topology.widths[leaf.id] for axis in topology.tensors[name] for leaf in leaves(axis)]
        if any(info.frozen is None for info in infos):
            free += tensor.numel()
        else:
            literal = (axis.why for axis in topology.tensors[name] if isinstance(axis, Fixed) and axis.why)
            why = next((info.frozen for info in infos if info.frozen), next(literal, "its axes are literal sizes"))
            held[plain(topology, why)] += tensor.numel()
    return free / max(1, total), {why: count / total for why, count in held.most_common()}


def without_names(why: str) -> str:
    """A reason without what it quotes."""
    return re.sub(r"'[^']*'", "...", why)[:160]


def plain(topology: Topology, why: str) -> str:
    """A reason without the names of layers, so that like reasons count together."""
    names = set(topology.values) | {info.name for info in topology.widths.values()}
    words = [("..." if word.strip("'(),:;") in names else word) for word in why.split(" ")]
    text = re.sub(r"\(\.\.\.\)|\([^()]*\d[^()]*\)", "", re.sub(r"(\.\.\. )+", "... ", " ".join(words))).strip()
    return re.sub(r"\d+", "N", text)[:160]


@dataclasses.dataclass(frozen=True)
class One:
    """The change of one class.

    seeds: by width, how many units come or go; others may have to follow. code: the lines of the model's code that must
    follow and that `fit` cannot reach, as `what at file:line`. torn: a number of the code that would have to be two.
    """

    names: tuple[str, ...]
    seeds: Mapping[int, int]
    code: tuple[str, ...] = ()
    torn: str | None = None


Group = list[One]


def _changes(topology: Topology, command: str, group: Group) -> list[WidthChange]:
    """The changes of a group, with all that must follow."""
    seeds: dict[int, int] = {}
    for one in group:
        seeds.update(one.seeds)
    counts = keeping_ties(topology, seeds, -1 if command == "prune" else 1, strict=False)
    return [_change(topology, command, width, count) for width, count in counts.items() if count]


def _change(topology: Topology, command: str, width: int, count: int) -> WidthChange:
    size = topology.widths[width].size
    if command == "expand":
        return expand(width, size, count)
    if command == "prune":
        return prune(width, size, range(count))
    if count <= size or count % size:
        more = [unit % size for unit in range(count)]
        return WidthChange(width, size, (*range(size), *more), "split", noise=NOISE)
    return split(width, size, range(size), NOISE, count // size + 1)


def _one(job: Job, command: str, seeds: Mapping[int, int], *, zero_units: bool = False) -> tuple[One, Plan]:
    """The change of one class and its plan. Raises Refused."""
    topology = job.topology
    one = One(tuple(topology.widths[width].name for width in seeds), seeds)
    plan = make_plan(topology, job.checkpoint.tensors, _changes(topology, command, [one]), zero_units=zero_units)
    open_ = [entry for entry in plan.code if entry.attribute is None and entry.what not in SET_BY_FIT]
    code = tuple(sorted({f"{entry.what} at {entry.source}" for entry in open_}))
    return dataclasses.replace(one, code=code, torn=next(iter(plan.torn), None)), plan


def _wanted(job: Job, command: str, classes: Sequence[Class]) -> tuple[Group, Counter[str]]:
    """The changes of each class that the topology allows, and why it refuses the others."""
    made, refused = [], Counter[str]()
    for together in classes:
        why: str | None = None
        for seeds in _ways(job.topology, command, together):
            try:
                made.append(_one(job, command, seeds)[0])
            except Refused as error:
                why = plain(job.topology, str(error))
                continue
            break
        else:
            refused[why or "?"] += len(together)
    return made, refused


def _ways(topology: Topology, command: str, together: Class) -> Iterator[dict[int, int]]:
    """How many units may come to the widths of a class, the fewest first."""
    sizes = {width: topology.widths[width].size for width in together}
    yield dict.fromkeys(sizes, MORE if command == "expand" else min(MORE, *sizes.values()))
    if len(set(sizes.values())) == 1:
        yield sizes


# -- changes in the real model -----------------------------------------------------------------------


@dataclasses.dataclass
class _Bench:
    """A model with its checkpoint and spec on disk."""

    entry: Entry
    model: torch.nn.Module
    folder: Path
    text: str
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wanted: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec.write_text(self.text, encoding="utf-8")
        torch.save(self.model.state_dict(), self.checkpoint)

    @property
    def spec(self) -> Path:
        return self.folder / "model.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.pt"

    def options(self, output: Path | None = None) -> Options:
        small = sum(tensor.numel() for tensor in self.model.parameters()) <= PROVEN
        return Options(spec=self.spec, output=output, force=True, probes=self.entry.batch, verify=small)

    def prepare(self, job: Job) -> float:
        """Run the model on inputs, and tell how far the spec's outputs are from its own."""
        sizes, self.inputs = next(iter(job.probes(self.entry.batch, 1).batches(torch.float64)))
        self.wanted = self.outputs(self.model)
        return apart(job.network.outputs(sizes, self.inputs, torch.float64), self.wanted)

    def outputs(self, model: torch.nn.Module) -> list[torch.Tensor]:
        """The floating outputs of a model on the inputs, each tensor once."""
        given = [parse_input(text) for text in self.entry.inputs]
        pairs = list(zip(given, self.inputs.values(), strict=True))
        named = {item.name: value for item, value in pairs if item.name is not None}
        with torch.no_grad():
            result = model(*(value for item, value in pairs if item.name is None), **named, **self.entry.options)
        return list({id(tensor): tensor for tensor in _tensors(result) if tensor.is_floating_point()}.values())

    def settle(self, command: str, groups: Sequence[Group], refused: Counter[str], asked: int) -> Changed:
        """Change all widths in one plan; where that fails, narrow down to those that fail alone."""
        outcome = _Outcome()
        for group in groups:
            for one in group:
                if one.torn is not None:
                    outcome.give_up([one], one.torn, coded=True)
        whole = [[one for one in group if one.torn is None] for group in groups]
        waiting, began = [part for group in whole for part in self._affordable(command, group)], time.perf_counter()
        while waiting:
            group = waiting.pop(0)
            if not group:
                continue
            if time.perf_counter() - began > PATIENCE:
                outcome.give_up(group, "fails among others; not tried alone")
                continue
            tried = self.attempt(command, group)
            if tried.why is None:
                outcome.take(group, tried)
                continue
            log(f"{command} of {len(group)}: {tried.why[:200]}")
            kinds = _kinds(group)
            if len(group) == 1 and tried.refused is not None:
                refused[tried.refused] += len(group[0].names)
            elif len(group) == 1:
                outcome.give_up(group, tried.why, coded=tried.hosted is False)
            elif len(kinds) > 1:
                waiting = kinds + waiting
            elif group[0].code and (alone := self.attempt(command, group[:1])).why is not None:
                # The code has the same number for all of them.
                outcome.give_up(group, alone.why, coded=alone.hosted is False)
            else:
                waiting = [group[: len(group) // 2], group[len(group) // 2 :], *waiting]
        if outcome.coded and command != "prune":
            self._in_proportion(command, [one for group in groups for one in group], outcome)
        return Changed(asked, outcome.done, dict(refused), outcome.coded, outcome.failed, outcome.plans, outcome.worst)

    def _affordable(self, command: str, group: Group) -> list[Group]:
        """A group in parts whose results are not too large, if they can be."""
        with opened(self.checkpoint, self.options()) as job:

            def fits(ones: Group) -> bool:
                try:
                    plan = make_plan(job.topology, job.checkpoint.tensors, _changes(job.topology, command, ones))
                except Refused:  # (which will be found and told when it is tried)
                    return True
                return total_bytes(plan.infos(job.topology, job.checkpoint.tensors).values()) <= LARGEST

            if command == "prune" or fits(group):
                return [group]
            parts: list[Group] = []
            for one in group:
                part = next((part for part in parts if fits([*part, one])), None)
                if part is None:
                    parts.append(part := [])
                part.append(one)
        return parts

    def _in_proportion(self, command: str, group: Group, outcome: _Outcome) -> None:
        """Code that computes one size from others (`C // num_heads`) may host all of them twice as large."""
        doubled = []
        with opened(self.checkpoint, self.options()) as job:
            for one in group:
                seeds = {width: job.topology.widths[width].size for width in one.seeds}
                with contextlib.suppress(Refused):
                    doubled.append(_one(job, command, seeds)[0])
        doubled = [one for one in doubled if one.torn is None]
        if not any(name in outcome.coded for one in doubled for name in one.names):
            return
        tried = self.attempt(command, doubled)
        log(f"{command} of {len(doubled)}, all doubled: {tried.why or tried.apart}")
        if tried.why is None:
            outcome.take([], tried)

    def attempt(self, command: str, group: Group) -> _Tried:
        """Change, fit the real model to the result, and compare its outputs with the old model's."""
        output = self.folder / "changed.pt"
        try:
            report = change(
                self.checkpoint,
                command,
                lambda job: Selection(tuple(_changes(job.topology, command, group))),
                self.options(output),
            )
        except Refused as error:
            return _Tried(f"Refused: {first_line(error)}", refused=without_names(first_line(error)))
        except NetgrowError as error:
            return _Tried(f"{type(error).__name__}: {first_line(error)}"[:400])
        try:
            # (What a model has cached of its old sizes it drops when training begins.)
            fresh = copy.deepcopy(self.model).train().eval()
            found = apart(self.outputs(netgrow_cli.fit(fresh, output)), self.wanted)
        except Exception as error:  # whatever the model's own code raises at the new sizes
            why, found = f"{type(error).__name__}: {first_line(error)}"[:400], math.inf
        else:
            why = f"outputs differ by {found:.1e} of their size"
        if found <= self.entry.tolerance:
            names = frozenset(report.topology.widths[made.width].name for made in report.plan.changes)
            return _Tried(None, True, found, changed=names)
        return _Tried(why, not any(one.code for one in group), found)


@dataclasses.dataclass(frozen=True)
class _Tried:
    """One plan. why: what went wrong. hosted: False where sizes in the model's own code may be why. refused: why it was
    not even tried, but for the names. changed: the widths that changed, those that had to follow among them."""

    why: str | None
    hosted: bool | None = None
    apart: float = math.inf
    refused: str | None = None
    changed: frozenset[str] = frozenset()


@dataclasses.dataclass
class _Outcome:
    done: int = 0
    plans: int = 0
    worst: float = 0.0
    coded: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def take(self, group: Group, tried: _Tried) -> None:
        # (A width that the code cannot host alone may have followed others: a stream its heads.)
        followed = [name for name in tried.changed if self.coded.pop(name, None) is not None]
        self.done += sum(len(one.names) for one in group) + len(followed)
        self.plans += 1
        self.worst = max(self.worst, tried.apart)

    def give_up(self, group: Group, why: str, coded: bool = False) -> None:
        for one in group:
            code = "; ".join(one.code)
            (self.coded if coded else self.failed).update(dict.fromkeys(one.names, f"{why} [{code}]" if coded else why))


def _kinds(group: Group) -> list[Group]:
    """The parts of a group whose changes need the same lines of the model's code to follow."""
    kinds: dict[tuple[str, ...], Group] = {}
    for one in group:
        kinds.setdefault(one.code, []).append(one)
    return list(kinds.values())


def _pruned(bench: _Bench, classes: Sequence[Class]) -> Changed:
    """A dead unit in each of a sample of the widths, and then out with it."""
    with opened(bench.checkpoint, bench.options()) as job:
        topology = job.topology
        able = [c for c in classes if all(topology.widths[width].size > 1 for width in c)]
        made: list[tuple[One, list[WidthChange]]] = []
        refused = Counter[str]()
        for together in able:
            try:
                one, plan = _one(job, "prune", dict.fromkeys(together, 1), zero_units=True)
                lossy = plan.lossy
            except Refused as error:
                lossy = (str(error),)
            if lossy:
                refused[plain(topology, lossy[0])] += len(together)
            else:
                made.append((one, list(plan.changes)))
        sample = made[:: max(1, len(made) // PRUNED)][:PRUNED]
        silence(topology, bench.model.state_dict(), [entry for _, changes in sample for entry in changes])
        seen = {w for w, info in topology.widths.items() if info.effects}
    torch.save(bench.model.state_dict(), bench.checkpoint)
    bench.wanted = bench.outputs(bench.model)
    # Norms need units that are zero where they read them, which is said of all units of a plan.
    normed = [one for one, changes in sample if seen & {entry.width for entry in changes}]
    others = [one for one, changes in sample if not seen & {entry.width for entry in changes}]
    asked = sum(len(one.names) for one, _ in sample)
    return bench.settle("prune", [normed, others], refused, asked)


def log(text: str) -> None:
    """Progress, for whoever watches."""
    print(f"    {text}", file=sys.stderr, flush=True)


def apart(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """The largest difference, relative to the size of that output; infinite where they do not correspond."""
    if len(found) != len(wanted) or any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return math.inf
    ratios = [
        float((one - other).abs().max()) / (float(other.abs().max()) or 1.0)
        for one, other in zip(found, wanted, strict=True)
        if other.numel()
    ]
    return max((ratio if math.isfinite(ratio) else math.inf for ratio in ratios), default=math.inf)


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, dict):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, (list, tuple)):
        for value in result:
            yield from _tensors(value)
