"""Numbers of the code by the attributes that hold them: found by a trace, tied, reported and set by `fit`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netgrow_cli
from netgrow_cli.errors import UsageError
from netgrow_cli.jobs.job import Options, Report, opened
from netgrow_cli.topology.trace.inputs import parse_input
from netgrow_cli.topology.trace.source import trace_model

from .toys import started

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

STREAM, HEADS, SIZE, LENGTH = 12, 4, 3, 5


class Attention(nn.Module):
    """Attention whose module keeps the number of heads, their size and the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = HEADS, SIZE, SIZE**-0.5
        self.layer_idx = HEADS  # (an index that has the value of a size)
        self.into = nn.Linear(6, STREAM)
        self.qkv = nn.Linear(STREAM, 3 * HEADS * SIZE)
        self.back = nn.Linear(HEADS * SIZE, STREAM)
        self.out = nn.Linear(STREAM, 2)

    def mixed(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)


class Stated(Attention):
    def forward(self, x):
        x = self.into(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(x + self.back(self.mixed(q, k, v).transpose(1, 2).flatten(2)))


class Variables(Attention):
    def forward(self, x):
        x = self.into(x)
        b, t, _ = x.shape
        num_heads, d = self.num_heads, self.head_dim
        q, k, v = self.qkv(x).view(b, t, 3, num_heads, d).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(x + self.back(self.mixed(q, k, v).transpose(1, 2).flatten(2)))


class Together(Attention):
    """A shape made beforehand, counted from its end, with a multiple of an attribute."""

    def forward(self, x):
        x = self.into(x)
        shape = (*x.shape[:-1], -1, 3 * self.head_dim)
        q, k, v = self.qkv(x).view(shape).transpose(1, 2).chunk(3, dim=-1)
        return self.out(x + self.back(self.mixed(q, k, v).transpose(1, 2).flatten(2)))


class Computed(Attention):
    """Nothing to be set: the sizes come from shapes."""

    def forward(self, x):
        x = self.into(x)
        b, t, c = x.shape
        y = self.qkv(x).view(b, t, 3, self.num_heads, c // self.num_heads)
        q, k, v = y.permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(x + self.back(self.mixed(q, k, v).transpose(1, 2).flatten(2)))


class Saved:
    """A model traced, with its checkpoint and spec on disk."""

    def __init__(self, make: Any, folder: Path, text: str) -> None:
        self.make, self.folder = make, folder
        self.model = started(make).double()
        self.spec, self.checkpoint = folder / "m.yaml", folder / "m.pt"
        self.traced = trace_model(started(make), [parse_input(text)])
        self.spec.write_text(self.traced.text, encoding="utf-8")
        torch.save(self.model.state_dict(), self.checkpoint)
        self.x = torch.randn([int(size) for size in re.findall(r"\d+", text)[1:]], dtype=torch.float64)

    @property
    def code(self) -> set[str]:
        """The attributes that the spec names."""
        return set(re.findall(r'"?[\w^.\[\]-]+"?: "?((?:\d \* )?\w+(?:\.\w+)*)"?', " ".join(self.coded)))

    @property
    def coded(self) -> list[str]:
        return re.findall(r"code: \{([^}]*)\}", self.traced.text)

    def name(self, tensor: str, axis: int, place: int) -> str:
        """The name of a width by where it stands in a tensor."""
        from netgrow_cli.topology.layout import leaves

        with opened(self.checkpoint, Options(spec=self.spec)) as job:
            found = list(leaves(job.topology.tensors[tensor][axis]))
            return job.topology.widths[found[place].id].name

    def change(self, command: str, width: str, **how: Any) -> tuple[Report, Path]:
        output = self.folder / f"{command}.pt"
        done = getattr(netgrow_cli, command)(
            self.checkpoint, width=width, spec=self.spec, output=output, probes=4, force=True, **how
        )
        return done, output

    def same(self, output: Path) -> nn.Module:
        """The model fitted to a result, which must compute what it did."""
        model = netgrow_cli.fit(started(self.make).double(), output)
        with torch.no_grad():
            torch.testing.assert_close(model(self.x), self.model(self.x), rtol=1e-11, atol=1e-11)
        return model


def saved(make: Any, folder: Path, text: str = f"float32[2,{LENGTH},6]") -> Saved:
    return Saved(make, folder, text)


@pytest.mark.parametrize("kind", [Stated, Variables])
def test_heads_and_their_size_go_back_into_the_module(kind: Any, tmp_path: Path) -> None:
    case = saved(kind, tmp_path)
    assert case.code == {"num_heads", "head_dim", "scale"}
    heads, size = case.name("back.weight", 1, 0), case.name("back.weight", 1, 1)
    report, output = case.change("expand", heads, add=2)
    assert {entry.attribute for entry in report.plan.code} == {"num_heads"}
    assert case.same(output).num_heads == HEADS + 2
    report, output = case.change("expand", size, add=2)
    assert {entry.attribute for entry in report.plan.code} == {"head_dim"}
    model = case.same(output)
    assert model.head_dim == SIZE + 2 and model.scale == pytest.approx((SIZE + 2) ** -0.5)


class Appended(Together):
    def forward(self, x):
        x = self.into(x)
        shape = x.size()[:-1] + (-1, 3 * self.head_dim)  # noqa: RUF005 (as models write it)
        q, k, v = self.qkv(x).view(shape).transpose(1, 2).chunk(3, dim=-1)
        return self.out(x + self.back(self.mixed(q, k, v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", [Together, Appended])
def test_a_multiple_of_an_attribute(kind: Any, tmp_path: Path) -> None:
    case = saved(kind, tmp_path)
    assert case.code == {"3 * head_dim", "scale"}
    _, output = case.change("expand", case.name("back.weight", 1, 1), add=1)
    assert case.same(output).head_dim == SIZE + 1
    _, output = case.change("split", case.name("back.weight", 1, 0), units=[1])
    case.same(output)


def test_what_is_computed_from_a_shape_names_nothing(tmp_path: Path) -> None:
    case = saved(Computed, tmp_path)
    assert case.code == {"num_heads", "scale"}
    report, _ = case.change("expand", case.name("back.weight", 1, 1), add=1)
    entries = [entry for entry in report.plan.code if entry.attribute is None]
    assert entries and all(str(entry.source).startswith("test_trace_attributes.py:") for entry in entries)


class OneSize(nn.Module):
    """One number for the inner sizes of two blocks, as code that reshapes by it has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = 4
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        self.c, self.d = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        one = self.a(x).view(-1, 2, self.inner)
        other = self.b(x).view(-1, 2, self.inner)
        return self.c(torch.relu(one)).sum(1) + self.d(torch.tanh(other)).sum(1)


def test_widths_that_one_attribute_holds_change_together(tmp_path: Path) -> None:
    case = saved(OneSize, tmp_path, "float32[3,6]")
    one, other = case.name("c.weight", 1, 0), case.name("d.weight", 1, 0)
    report, output = case.change("expand", one, add=3)
    assert {report.topology.widths[entry.width].name: entry.after for entry in report.plan.changes} == {
        one: 7,
        other: 7,
    }
    assert case.same(output).inner == 7 and report.plan.torn == ()


def test_a_width_whose_partner_cannot_follow_changes_alone_and_is_said(tmp_path: Path) -> None:
    """A softmax sees the other width, to which nothing may be added."""

    class Torn(OneSize):
        def forward(self, x):
            one = self.a(x).view(-1, 2, self.inner)
            other = self.b(x).view(-1, 2, self.inner)
            return self.c(torch.relu(one)).sum(1) + self.d(torch.softmax(other, -1)).sum(1)

    case = saved(Torn, tmp_path, "float32[3,6]")
    report, output = case.change("expand", case.name("c.weight", 1, 0), add=3)
    assert len(report.plan.changes) == 1
    assert report.plan.torn == ("inner is one number in the model's code, and would have to be 7 and 4",)
    assert any("does not load into it" in warning for warning in report.warnings)
    with pytest.raises(UsageError, match="one number, inner"):
        netgrow_cli.fit(started(Torn).double(), output)


class Restated(nn.Module):
    """A reshape that changes nothing, to a size that the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 8
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(self.a(x).view(-1, self.hidden))


class Ranged(Restated):
    def forward(self, x):
        return self.b(self.a(x)[:, : self.hidden])


@pytest.mark.parametrize("kind", [Restated, Ranged])
def test_what_changes_nothing_states_a_size(kind: Any, tmp_path: Path) -> None:
    case = saved(kind, tmp_path, "float32[3,6]")
    report, output = case.change("expand", "a", add=3)
    assert [(entry.attribute, entry.after) for entry in report.plan.code] == [("hidden", 11)]
    assert case.same(output).hidden == 11


class Idle(nn.Module):
    """A norm that runs, and that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.idle, self.b = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        self.idle(x)
        return self.b(x)


def test_a_layer_that_runs_for_nothing_follows(tmp_path: Path) -> None:
    case = saved(Idle, tmp_path, "float32[3,6]")
    assert case.traced.unused == ()
    _, output = case.change("expand", "a", add=3)
    assert case.same(output).idle.in_features == 11


class Offsets(nn.Module):
    """A bias for each head, whose shape another module keeps in a tuple and uses in a method."""

    def __init__(self) -> None:
        super().__init__()
        self.bias_shape = (LENGTH, LENGTH, HEADS)
        self.table = nn.Parameter(torch.randn(LENGTH * LENGTH, HEADS))

    def get_bias(self):
        return self.table.view(self.bias_shape).permute(2, 0, 1).unsqueeze(0)


class Shifted(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.offsets = Offsets()

    def forward(self, x):
        x = self.into(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.offsets.get_bias()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(x + self.back(mixed.transpose(1, 2).flatten(2)))


def test_a_number_that_another_module_s_method_uses(tmp_path: Path) -> None:
    case = saved(Shifted, tmp_path)
    assert any("offsets.bias_shape[2]" in text for text in case.coded)
    report, output = case.change("expand", case.name("back.weight", 1, 0), add=2)
    assert {entry.attribute for entry in report.plan.code} == {"num_heads", "offsets.bias_shape[2]"}
    model = case.same(output)
    assert model.num_heads == HEADS + 2 and model.offsets.bias_shape == (LENGTH, LENGTH, HEADS + 2)


class Listed(nn.Module):
    """A fused layer, cut by a list that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [8, 5]
        self.fused, self.a, self.b = nn.Linear(6, 13), nn.Linear(8, 2), nn.Linear(5, 2)

    def forward(self, x):
        one, other = torch.split(self.fused(x), self.parts, -1)
        return self.a(one) + self.b(other)


def test_entries_of_a_list(tmp_path: Path) -> None:
    case = saved(Listed, tmp_path, "float32[3,6]")
    report, output = case.change("expand", case.name("a.weight", 1, 0), add=3)
    assert {entry.attribute for entry in report.plan.code} == {"parts[0]"}
    assert case.same(output).parts == [11, 5]


class Kept(nn.Module):
    """What modules keep beside parameters: a norm's shape, a buffer of zeros, a version."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.shape = (8,)
        self.register_buffer("zeros", torch.zeros(8), persistent=False)
        self.shift = nn.Parameter(torch.ones(8))
        self.unread = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.b(F.layer_norm(self.a(x) + torch.relu(self.zeros + self.shift), self.shape))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") != self._version:
            raise ValueError("a version is needed")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_shapes_buffers_and_versions_follow(tmp_path: Path) -> None:
    case = saved(Kept, tmp_path, "float32[3,6]")
    assert case.traced.unused == ("unread",) and "unread" in case.traced.warnings[0]
    line = next(line for line in case.traced.text.splitlines() if line.startswith("# ignore: "))
    case.spec.write_text(case.traced.text + line.removeprefix("# ") + "\n", encoding="utf-8")
    _, output = case.change("split", case.name("b.weight", 1, 0), units=list(range(8)))
    model = case.same(output)
    assert model.shape == (16,) and model.zeros.shape == (16,)
