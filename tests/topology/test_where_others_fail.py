"""Structures on which channel pruners that work on live models fail, hang, or go wrong without a word.

Each is traced, certified, expanded, split and pruned of dead units, and each result is loaded into the real module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netgrow_cli
from netgrow_cli.jobs.job import Job, Options, Selection, change, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.surgery.change import WidthChange, expand, prune, split
from netgrow_cli.surgery.select import keeping_ties
from netgrow_cli.topology.layout import leaves, occurrences
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import Topology
from netgrow_cli.topology.trace.inputs import parse_input
from netgrow_cli.topology.trace.source import trace_model

from .toys import ChannelsLast, started

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


class Grouped(nn.Module):
    """Groups in a row, as in ResNeXt and RegNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 8, 3, groups=4)
        self.norm, self.c = nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.c(F.relu(self.norm(self.b(F.relu(self.a(x))))))


class Unaligned(nn.Module):
    """Two groupings of the same channels that do not nest: 12 as 4 groups of 3, and as 6 of 2. Only what each of the
    first groups reads may change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 12, 1), nn.Conv2d(12, 12, 3, groups=4, padding=1)
        self.c, self.d = nn.Conv2d(12, 6, 3, groups=6, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle, with its number of groups kept by the module."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 3
        self.a, self.b, self.c = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2).contiguous()
        return self.c(F.relu(self.b(x.view(batch, -1, height, width))))


class PaddedShortcut(nn.Module):
    """The shortcut of ResNets for CIFAR: more channels, by zeros around those that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.c = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.c(F.relu(self.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


class SideBySide(nn.Module):
    """The same units twice in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(torch.cat([x, x], dim=1))


class Dense(nn.Module):
    """Concatenations of concatenations, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(7, 5, 1)
        self.norm, self.out = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.cat([x, F.relu(self.b(x))], 1)
        x = torch.cat([F.relu(self.c(x)), x], 1)
        return self.out(F.relu(self.norm(x)))


class GroupedQuery(nn.Module):
    """Attention with fewer heads of keys and values than of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.size = 2, 4
        self.into, self.out = nn.Linear(4, 8), nn.Linear(16, 3)
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = F.relu(self.into(x))
        shape = (*x.shape[:2], -1, self.size)
        q = self.q(x).view(shape).transpose(1, 2)
        k = self.k(x).view(shape).transpose(1, 2).repeat_interleave(self.groups, 1)
        v = self.v(x).view(shape).transpose(1, 2).repeat_interleave(self.groups, 1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.into, self.cells = nn.Linear(4, 5), kind(5, 6, 2, batch_first=True, **settings)
        self.out = nn.Linear(12 if self.cells.bidirectional else 6, 3)

    def forward(self, x):
        return self.out(self.cells(torch.relu(self.into(x)))[0])


@dataclasses.dataclass(frozen=True)
class Case:
    """A structure. units: sizes of the widths that may change."""

    name: str
    make: Callable[[], nn.Module]
    input: str
    units: list[int]

    def __str__(self) -> str:
        return self.name


IMAGE, VECTOR, SEQUENCE = "float32[2,2,8,8]", "float32[2,4]", "float32[2,5,4]"
CASES = [
    Case("grouped", Grouped, IMAGE, [2, 3, 4]),
    Case("grouped, not aligned", Unaligned, IMAGE, [3]),
    Case("channel shuffle", Shuffle, IMAGE, [3, 4]),
    Case("channels last", ChannelsLast, IMAGE, [5]),
    Case("cat([x, x])", SideBySide, VECTOR, [6]),
    Case("channels padded with zeros", PaddedShortcut, IMAGE, [4]),
    Case("cat of cats", Dense, IMAGE, [3, 4, 5]),
    Case("grouped-query attention", GroupedQuery, SEQUENCE, [2, 2, 4, 4, 8]),
    Case("LSTM", lambda: Recurrent(nn.LSTM), SEQUENCE, [5, 6, 6]),
    Case("LSTM, both ways", lambda: Recurrent(nn.LSTM, bidirectional=True), SEQUENCE, [5, 6, 6, 6, 6]),
    Case("GRU", lambda: Recurrent(nn.GRU), SEQUENCE, [5, 6, 6]),
]


@dataclasses.dataclass(frozen=True)
class Saved:
    case: Case
    model: nn.Module
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.pt"

    @property
    def options(self) -> Options:
        return Options(spec=self.folder / "model.yaml", probes=16, output=self.folder / "changed.pt", force=True)

    def inputs(self) -> torch.Tensor:
        return torch.randn(parse_input(self.case.input).shape, dtype=torch.float64, generator=seeded(3))

    def outputs(self, model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(self.inputs())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=CASES, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Saved:
    case: Case = request.param
    model = started(case.make)
    (tmp_path / "model.yaml").write_text(trace_model(model, [parse_input(case.input)]).text, encoding="utf-8")
    made = Saved(case, model.double(), tmp_path)
    torch.save(model.state_dict(), made.checkpoint)
    return made


def free(topology: Topology) -> list[int]:
    return [width for width, info in topology.widths.items() if info.frozen is None]


def test_what_may_change(saved: Saved) -> None:
    with opened(saved.checkpoint, saved.options) as job:
        topology = job.topology
        assert sorted(topology.widths[width].size for width in free(topology)) == saved.case.units
        found = certify(job.network, job.probes(16, 0), seed=0, dtype="float64", tolerance=1e-12)
    assert found.equivalence.equal and not found.equivalence.constant, found.culprits


@pytest.mark.parametrize("command", ["expand", "split", "prune"])
def test_every_width_in_the_real_module(saved: Saved, command: str) -> None:
    """Each width alone with those whose sizes follow; dead units are made so first."""
    with opened(saved.checkpoint, saved.options) as job:
        widths, topology = free(job.topology), job.topology
    for width in widths:
        model = netgrow_cli.fit(started(saved.case.make).double(), saved.checkpoint)
        counts = keeping_ties(topology, {width: 1}, -1 if command == "prune" else 1, strict=False)
        if any(topology.widths[other].effects for other in counts):
            continue  # (sizes of queries and keys: what is exact there is tested with attention)
        changes = [changed(topology, command, other, count) for other, count in counts.items()]
        if command == "prune":
            silence(topology, model.state_dict(), changes)
            torch.save(model.state_dict(), saved.checkpoint)
        report = change(saved.checkpoint, command, chosen(changes), saved.options)
        assert report.equivalence is not None and report.equivalence.equal
        assert all(tuple(before) != tuple(after) for _, before, after in report.tensors)
        fitted = netgrow_cli.fit(started(saved.case.make).double(), saved.folder / "changed.pt")
        torch.testing.assert_close(saved.outputs(fitted), saved.outputs(model), rtol=1e-10, atol=1e-10)


def chosen(changes: list[WidthChange]) -> Callable[[Job], Selection]:
    return lambda _: Selection(tuple(changes))


def changed(topology: Topology, command: str, width: int, count: int) -> WidthChange:
    size = topology.widths[width].size
    if command == "expand":
        return expand(width, size, count)
    if command == "split":
        return split(width, size, range(count), 0.2)
    return prune(width, size, range(count))


def silence(topology: Topology, state: dict[str, torch.Tensor], changes: list[WidthChange]) -> None:
    """Zero what makes the units that go, and what reads them."""
    for use in topology.uses:
        named = {leaf.id for part, role in use.parts if role is not Role.DATA for leaf in leaves(part)}
        for entry in changes:
            if entry.width in named and use.param != "running_var":
                for labels in occurrences(topology.tensors[use.tensor][use.axis], entry.width):
                    places = [n for n, unit in enumerate(labels.tolist()) if unit in entry.dropped]
                    state[use.tensor].index_fill_(use.axis, torch.tensor(places), 0.0)
