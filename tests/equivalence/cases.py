"""Random changes of random networks through the Python API, judged by the real modules."""

from __future__ import annotations

import collections
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import netgrow_cli
from netgrow_cli.errors import NetgrowError, NotEquivalent, Refused
from netgrow_cli.jobs.job import Options, Report, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.proof.probes import random_probes
from netgrow_cli.topology.layout import leaves, occurrences
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import Topology, WidthInfo
from tests.equivalence.networks import Built, Net

EXACT = 1e-12
# What a gain or a folded constant that is rounded to a dtype may move; see proof.equivalence.ROUNDED.
ROUNDED = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass
class Count:
    """What came of all changes that were tried."""

    done: collections.Counter[str] = field(default_factory=collections.Counter)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)


def save(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(dict(state), path)
    else:
        torch.save(dict(state), path)
    return path


def outputs(built: Built, path: Path, data: Sequence[torch.Tensor], spec: Path | None = None) -> list[torch.Tensor]:
    """What the real module computes with a checkpoint."""
    net: Net = built.make()
    netgrow_cli.fit(net, path, spec=spec)
    with torch.no_grad():
        return list(net(*data))


def distance(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    found = 0.0
    for one, other in zip(before, after, strict=True):
        assert one.shape == other.shape
        assert bool(other.isfinite().all())
        found = max(found, float((one - other).abs().max()) / max(1e-300, float(one.abs().max())))
    return found


def kill(
    state: dict[str, torch.Tensor], topology: Topology, info: WidthInfo, units: Sequence[int], value: float
) -> None:
    """Make units constant at what produces them: rows of weights zero, their biases a value."""
    for use in topology.uses:
        for part, role in use.parts:
            if not any(leaf.id == info.width.id for leaf in leaves(part)):
                continue
            per_unit = role is Role.PER_UNIT and use.param not in ("bias", "running_mean")
            if role is Role.CONSUMES or per_unit:
                continue
            for labels in occurrences(topology.tensors[use.tensor][use.axis], info.width.id):
                places = torch.tensor([n for n, unit in enumerate(labels) if unit in units])
                fill = value if use.param == "bias" and role is Role.PRODUCES else 0.0
                state[use.tensor].index_fill_(use.axis, places, fill)


def ties(topology: Topology, info: WidthInfo) -> list[WidthInfo]:
    """The widths whose sizes are tied to this one, itself first."""
    found = [info]
    for current in found:
        for tie in topology.ties:
            ids = [leaf.id for piece in tie.pieces for leaf in leaves(piece)]
            if current.width.id in ids:
                known = {other.width.id for other in found}
                found.extend(topology.widths[i] for i in dict.fromkeys(ids) if i not in known)
    return found


@dataclass
class Change:
    """One change to try. certain: it must not be refused. least: how many units it must take away at least."""

    command: str
    settings: dict[str, Any]
    certain: bool
    least: int = 0

    @property
    def rare(self) -> bool:
        """Whether units are judged by probes, which must be many: one that wakes seldom is not dead."""
        return self.command == "recycle" or "dead" in self.settings


def choose(rng: random.Random, topology: Topology, info: WidthInfo, copied: bool) -> Change:
    family = ties(topology, info)
    plain = not any(member.effects for member in family)
    kind = rng.choice(("expand", "expand", "split", "split", "merge" if copied else "split"))
    if kind == "expand":
        wide = ({"add": 1}, {"add": 2}, {"add": 3}, {"times": 2.0}, {"to": info.size + 2})
        settings: dict[str, Any] = rng.choice(wide)
        settings = {**settings, "init": rng.choice(("match", "match", "kaiming", "antisymmetric"))}
        if "to" not in settings and rng.random() < 0.3:  # several at once
            more = rng.choice([other for other in topology.widths.values() if other.frozen is None])
            plain = plain and not any(member.effects for member in ties(topology, more))
            if more.width.id not in {member.width.id for member in family} and "times" not in settings:
                return Change(kind, {"width": [info.name, more.name], **settings}, plain)
    elif kind == "split":
        units = sorted(rng.sample(range(info.size), rng.randint(1, info.size)))
        settings = rng.choice(({"units": units}, {"units": units}, {"every": True}, {"top": 1}))
        settings = {**settings, "ways": rng.choice((2, 2, 3)), "noise": rng.choice((0.0, 0.2, 0.2, 1.0))}
    else:
        kind, settings, plain = "prune", {"duplicates": True}, plain and len(family) == 1
    return Change(kind, {"width": info.name, **settings}, plain)


def run_case(built: Built, seed: int, folder: Path, count: Count, steps: int = 3) -> None:
    """Several changes in sequence, each compared in the real module with what went in."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = rng.choice((".pt", ".safetensors"))
    spec: Path | None = folder / "net.yaml"
    assert spec is not None
    spec.write_text(built.text, encoding="utf-8")
    path = save(built.state, folder / f"step0{suffix}")
    data, copied = built.data(seed + 1000), False
    before = outputs(built, path, data, spec)
    with opened(path, Options(spec=spec)) as job:
        topology = job.topology
    for step in range(1, steps + 1):
        free = [info for info in topology.widths.values() if info.frozen is None and info.size > 1]
        if not free:
            return
        info = rng.choice(free)
        if rng.random() < 0.3:
            path, spec, change = with_dead_units(rng, path, spec, topology, info, folder / f"dead{step}{suffix}")
            before = outputs(built, path, data, spec)
        else:
            change = choose(rng, topology, info, copied)
        target = folder / f"step{step}{suffix}"
        options = {"spec": spec, "output": target, "probes": 512 if change.rare else 48, "seed": rng.randint(0, 9)}
        try:
            report = getattr(netgrow_cli, change.command)(path, **change.settings, **options)
        except (Refused, NotEquivalent) as error:
            check_refusal(error, change)
            assert not target.exists()
            count.refused[f"{change.command} {type(error).__name__}"] += 1
            continue
        count.done[change.command] += 1
        after = outputs(built, target, data)
        found, limit = distance(before, after), tolerance(built, report)
        assert found <= limit, f"step {step}: {change} moves the outputs of the real model by {found:.3g}"
        if change.least:
            assert sum(len(made.dropped) for made in report.plan.changes) >= change.least, change
        copied = copied or change.command == "split"
        path, spec, before = target, None, after
        topology = with_own_spec(target)


def tolerance(built: Built, report: Report) -> float:
    """What the real outputs may differ by: nothing but summation, unless a number had to be rounded."""
    rounded = report.plan.rounds or (report.folded is not None and report.folded.left)
    return max(ROUNDED[dtype] for dtype in built.dtypes) if rounded else EXACT


def with_dead_units(
    rng: random.Random, path: Path, spec: Path | None, topology: Topology, info: WidthInfo, target: Path
) -> tuple[Path, Path, Change]:
    """The network with some units that are zero, or constant, and a change that concerns them."""
    with opened(path, Options(spec=spec)) as job:
        text = job.found.spec.text
        state = {name: job.checkpoint.read(name).clone() for name in job.checkpoint.tensors}
    family = ties(topology, info)
    value = rng.choice((0.0, 0.0, -0.5))
    number = rng.randint(1, max(1, min(member.size for member in family) - 1))
    for member in family:
        kill(state, topology, member, rng.sample(range(member.size), min(number, member.size)), value)
    save(state, target)
    own = target.with_suffix(".yaml")
    own.write_text(text, encoding="utf-8")
    certain = takes_constants(topology, family)
    settings: dict[str, Any] = {"width": [member.name for member in family]}
    if rng.random() < 0.65:
        least = number if certain and all(member.size > number for member in family) else 0
        return target, own, Change("prune", {**settings, "dead": True}, certain, least)
    lives = min(member.size for member in family) > number
    return target, own, Change("recycle", {**settings, "noise": rng.choice((0.0, 0.2))}, certain and lives)


def takes_constants(topology: Topology, family: Sequence[WidthInfo]) -> bool:
    """Whether all that reads the widths can surely take a constant into its own bias."""
    nodes = {node.name: node for node in topology.graph.nodes}
    shared = collections.Counter(name for node in nodes.values() for name in node.params.values())
    for member in family:
        if not member.consumers or member.effects or any(nodes[n].op.startswith("conv") for n in member.per_unit):
            return False
        for node in (nodes[name] for name in member.consumers):
            padded = node.attrs.get("padding") and node.attrs.get("padding_mode", "zeros") == "zeros"
            if padded or "bias" not in node.params or shared[node.params["bias"]] > 1 or "transpose" in node.op:
                return False
    return True


def with_own_spec(path: Path) -> Topology:
    """The topology by the spec that went with an output, which must describe it."""
    with opened(path, Options()) as job:
        assert job.topology.unclaimed == ()
        found = certify(job.network, random_probes(job.network.graph, 16, 5), seed=3, dtype="float64", tolerance=1e-9)
        assert found.equivalence.equal, found.culprits
        return job.topology


def check_refusal(error: NetgrowError, change: Change) -> None:
    """Only what is documented is refused: see the table in surgery/effects.py."""
    where = f"{change}: {type(error).__name__}: {error}"
    assert str(error)
    assert not change.certain or "all of its units are dead" in str(error), where
    if change.command in ("expand", "split"):
        assert isinstance(error, Refused), where
