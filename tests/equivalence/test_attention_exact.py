"""The size of queries and keys, and other widths of attention, measured in real modules."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netgrow_cli
from netgrow_cli import Refused
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.jobs.record import fold_back_record
from netgrow_cli.proof.foldback import FoldBack, fold_back
from netgrow_cli.surgery.change import expand, split
from netgrow_cli.surgery.edit import apply_edit
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.surgery.rewrite import rewrite_spec
from netgrow_cli.topology.layout import leaves
from netgrow_cli.topology.run import run
from netgrow_cli.topology.solve import WidthInfo, solve
from netgrow_cli.topology.spec import parse_spec
from netgrow_cli.topology.trace.inputs import Given
from netgrow_cli.topology.trace.source import trace_model, trace_source
from tests.equivalence.edits import Edit, edit, inputs, randomise, save, spec_of
from tests.equivalence.test_foldback import sources

EXACT = 1e-12
TIME = 5


class Attention(nn.Module):
    """Heads of queries over fewer heads of keys; the sizes follow from the parameters, as configured code has them."""

    def __init__(self, way: str = "default", heads: int = 4, groups: int = 1, size: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.way, self.groups, self.heads = way, groups, heads
        self.q, self.k = nn.Linear(6, heads * size, bias), nn.Linear(6, heads // groups * size, bias)
        self.v, self.o = nn.Linear(6, heads // groups * 5, bias), nn.Linear(heads * 5, 4)
        if way == "positions":
            self.table = nn.Parameter(torch.zeros(heads, TIME, TIME))

    def split_heads(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.split_heads(self.q(x), self.heads)
        k, v = (self.split_heads(made(x), self.heads // self.groups) for made in (self.k, self.v))
        if self.groups > 1:
            k, v = (t.repeat_interleave(self.groups, 1) for t in (k, v))
        return self.o(self.mixed(q, k, v).transpose(1, 2).flatten(2))

    def mixed(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        size = q.shape[-1]
        if self.way == "linear":
            return torch.einsum("bhqd,bhde->bhqe", q, torch.einsum("bhkd,bhke->bhde", k.relu(), v))
        if self.way == "plain":
            return torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        if self.way == "written":
            return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(size), -1) @ v
        if self.way == "queries":
            return torch.softmax((q * size**-0.5) @ k.transpose(-2, -1), -1) @ v
        if self.way == "both":
            return torch.softmax((q * size**-0.25) @ (k / size**0.25).transpose(-2, -1), -1) @ v
        if self.way == "literal":
            return F.scaled_dot_product_attention(q * size**-0.5, k, v, scale=1.0)
        if self.way == "other":
            return torch.softmax(q @ k.transpose(-2, -1) * 0.31, -1) @ v
        if self.way == "einsum":
            return torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) * size**-0.5, -1) @ v
        mask = self.table if self.way == "positions" else None
        scale = 0.3 if self.way in ("stated", "positions") else None
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


MIX = {
    "default": {"mix": "op: attention, from: [qt, kt, vt]"},
    "stated": {"mix": "op: attention, from: [qt, kt, vt], scale: 0.3"},
    "positions": {"table": "op: parameter, params: {weight: table}",
                  "mix": "op: attention, from: [qt, kt, vt, table], scale: 0.3"},
    "plain": {"kc": "op: transpose, from: kt", "s": "op: matmul, from: [qt, kc]",
              "p": "op: softmax, from: s", "mix": "op: matmul, from: [p, vt]"},
    "written": {"kc": "op: transpose, from: kt", "s": "op: matmul, from: [qt, kc], scaled: true",
                "p": "op: softmax, from: s", "mix": "op: matmul, from: [p, vt]"},
    "einsum": {"s": "op: einsum, from: [qt, kt], equation: 'bhqd,bhkd->bhqk', scaled: true",
               "p": "op: softmax, from: s", "mix": "op: matmul, from: [p, vt]"},
    "linear": {"kr": "op: relu, from: kt", "kv": "op: einsum, from: [kr, vt], equation: 'bhkd,bhke->bhde'",
               "mix": "op: einsum, from: [qt, kv], equation: 'bhqd,bhde->bhqe'"},
}  # fmt: skip
SCALED = ("default", "written", "einsum")


def spec(way: str, heads: int = 4, groups: int = 1) -> str:
    layers = {}
    for name, count in (("q", heads), ("k", heads // groups), ("v", heads // groups)):
        layers[name] = "op: linear, from: x"
        layers[f"{name}g"] = f"op: reshape, from: {name}, shape: [0, 0, {count}, -1]"
        layers[f"{name}t"] = f"op: transpose, from: {name}g, axes: [1, 2]"
    layers |= MIX[way]
    layers |= {"back": "op: transpose, from: mix, axes: [1, 2]", "flat": "op: flatten, from: back, start: 2"}
    return spec_of(f"x: [batch, {TIME}, 6]", "o", **layers, o="op: linear, from: flat")


def width(folder: Path, text: str, module: nn.Module, size: int, maker: str = "q") -> str:
    """The name of the width of that size that a layer makes."""
    path = save(folder / "named", text, module.state_dict())
    with opened(path, Options()) as job:
        found: list[WidthInfo] = [
            info for info in job.topology.widths.values() if info.size == size and maker in info.producers
        ]
    assert len(found) == 1
    return found[0].name


def changed(folder: Path, way: str, command: str, **settings: Any) -> Edit:
    module = randomise(Attention(way)).double()
    text = spec(way)
    return edit(folder, text, module, command, width=width(folder, text, module, 3), **settings)


def new_size(done: Edit) -> int:
    assert isinstance(done.after, Attention)
    return int(done.after.q.out_features) // 4


@pytest.mark.parametrize("init", ("match", "kaiming", "antisymmetric"))
@pytest.mark.parametrize("way", MIX)
def test_expand(tmp_path: Path, way: str, init: str) -> None:
    done = changed(tmp_path, way, "expand", add=2, init=init, check_learnable=True)
    assert new_size(done) == 5
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    assert done.report.folded is not None and not done.report.folded.differing
    assert done.report.plan.rounds == (way in SCALED)
    assert done.report.folded.whole == (way not in SCALED)
    learnable = done.report.learnable
    assert learnable is not None and learnable.good, learnable
    fresh = done.new["q.weight"].unflatten(0, (4, -1))[:, 3:]
    assert bool(fresh.any()) == (init == "antisymmetric")
    assert bool(done.new["k.weight"].unflatten(0, (4, -1))[:, 3:].all())
    factor = math.sqrt(5 / 3) if way in SCALED else 1.0
    torch.testing.assert_close(
        done.new["q.weight"].unflatten(0, (4, -1))[:, :3], done.old["q.weight"].unflatten(0, (4, -1)) * factor
    )


@pytest.mark.parametrize(("units", "ways"), (([1], 2), ([0, 2], 3), (None, 2)))
@pytest.mark.parametrize("way", [way for way in MIX if way != "linear"])
def test_split(tmp_path: Path, way: str, units: list[int] | None, ways: int) -> None:
    chosen: dict[str, Any] = {"every": True} if units is None else {"units": units}
    done = changed(tmp_path, way, "split", ways=ways, noise=0.3, **chosen)
    assert new_size(done) == 3 + (ways - 1) * len(units or range(3))
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    assert done.report.folded is not None and not done.report.folded.differing
    # Keys are copies; what queries pass on is shared, with noise.
    units = units or [0, 1, 2]
    copies = [place for place, made in enumerate([0, 1, 2, *units * (ways - 1)]) if made == units[0]]
    keys = done.new["k.weight"].unflatten(0, (4, -1))[:, copies]
    queries = done.new["q.weight"].unflatten(0, (4, -1))[:, copies]
    assert torch.equal(keys, keys[:, :1].expand_as(keys))
    assert not torch.allclose(queries[:, 0], queries[:, 1])
    factor = math.sqrt(new_size(done) / 3) if way in SCALED else 1.0
    torch.testing.assert_close(queries.sum(1), done.old["q.weight"].unflatten(0, (4, -1))[:, units[0]] * factor)


def test_split_where_one_side_is_not_linear(tmp_path: Path) -> None:
    """The keys pass a relu: queries carry. Where both pass one, nothing does."""
    done = changed(tmp_path, "linear", "split", units=[1], noise=0.3)
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    text = spec("linear").replace("from: [qt, kv]", "from: [qr, kv]")
    text = text.replace("outputs:", "  qr: {op: relu, from: qt}\noutputs:")
    with pytest.raises(Refused, match=r"passes 'qr', which is not linear.*passes 'kr', which is not linear"):
        module = randomise(Attention("linear")).double()
        edit(tmp_path, text, module, "split", width=width(tmp_path, text, module, 3), units=[1], force=True)


@pytest.mark.parametrize("side", ("q", "k"))
@pytest.mark.parametrize("way", MIX)
def test_prune_of_units_that_are_zero_on_one_side(tmp_path: Path, way: str, side: str) -> None:
    module, text = randomise(Attention(way)).double(), spec(way)
    with torch.no_grad():
        for tensor in (getattr(module, side).weight, getattr(module, side).bias):
            tensor.view(4, 3, -1)[:, 1] = 0.0
    name = width(tmp_path, text, module, 3)
    for chosen in ({"units": [1]}, {"dead": True}):
        done = edit(tmp_path, text, module, "prune", width=name, output=tmp_path / f"{len(chosen)}.pt", force=True,
                    **chosen)  # fmt: skip
        assert new_size(done) == 2
        assert done.distance(inputs(7, TIME, 6)) < EXACT
        assert not done.report.plan.lossy
    with pytest.raises(Refused, match="zero on neither side"):
        edit(tmp_path, text, module, "prune", width=name, units=[0])
    drifted = edit(tmp_path, text, module, "prune", width=name, units=[0], allow_drift=10.0)
    assert drifted.distance(inputs(7, TIME, 6)) > 1e-3


def test_recycle_and_merge(tmp_path: Path) -> None:
    module, text = randomise(Attention("default")).double(), spec("default")
    with torch.no_grad():
        for tensor in (module.k.weight, module.k.bias):
            tensor.view(4, 3, -1)[:, 1] = 0.0
    name = width(tmp_path, text, module, 3)
    done = edit(tmp_path, text, module, "recycle", width=name)
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    assert bool(done.new["k.weight"].any(1).all())
    there = edit(tmp_path, text, module, "split", width=name, every=True, noise=0.0)
    back = edit(tmp_path / "back", spec("default"), there.after.double(), "prune", width=name, duplicates=True)
    assert new_size(back) == 3
    assert back.distance(inputs(7, TIME, 6)) < EXACT
    torch.testing.assert_close(back.new["q.weight"], module.q.weight, rtol=1e-14, atol=1e-15)


# -- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", (1, 2))
def test_sizes_with_fewer_heads_of_keys(tmp_path: Path, groups: int) -> None:
    module, text = randomise(Attention(groups=groups)).double(), spec("default", groups=groups)
    name = width(tmp_path, text, module, 3)
    for command, settings in (("expand", {"add": 2}), ("split", {"every": True})):
        done = edit(tmp_path / "size", text, module, command, width=name, **settings)
        assert done.distance(inputs(7, TIME, 6)) < EXACT
        # The size of values is free.
        values = width(tmp_path, text, module, 5, "v")
        done = edit(tmp_path / "values", text, module, command, width=values, **settings)
        assert done.distance(inputs(7, TIME, 6)) < EXACT
        assert done.report.folded is not None and done.report.folded.whole


@pytest.mark.parametrize(("command", "settings"), (
    ("expand", {"add": 2}), ("expand", {"add": 2, "init": "antisymmetric"}), ("split", {"units": [1]}),
    ("split", {"every": True, "ways": 3}), ("prune", {"units": [0]}), ("recycle", {}),
))  # fmt: skip
@pytest.mark.parametrize(
    ("way", "groups"), [("default", 1), ("default", 2), ("written", 1), ("einsum", 1), ("linear", 1)]
)
def test_heads(tmp_path: Path, way: str, groups: int, command: str, settings: dict[str, Any]) -> None:
    """Heads of queries with their keys and values; where they share keys, groups of them, and heads in each group."""
    module = randomise(Attention(way, groups=groups)).double()
    with torch.no_grad():  # a group of heads that nothing comes from
        module.v.weight.view(4 // groups, -1)[0] = 0.0
        module.v.bias.view(4 // groups, -1)[0] = 0.0
    text = spec(way, groups=groups)
    path = save(tmp_path / "named", text, module.state_dict())
    with opened(path, Options()) as job:
        makers = {info.name: info for info in job.topology.widths.values() if {"q", "k", "v"} <= set(info.producers)}
    assert len(makers) == 1, makers
    name = next(iter(makers))
    report = getattr(netgrow_cli, command)(path, width=name, output=tmp_path / "out.pt", probes=64, **settings)
    before = netgrow_cli.fit(Attention(way, groups=groups).double(), path).eval()
    heads = report.plan.changes[0].after * groups
    after = netgrow_cli.fit(Attention(way, heads, groups).double(), report.output).eval()
    done = Edit(report, report.output, before, after, {}, {})
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    assert not report.plan.rounds


@pytest.mark.parametrize("command", ("expand", "split"))
def test_a_head_in_each_group(tmp_path: Path, command: str) -> None:
    module, text = randomise(Attention(groups=2)).double(), spec("default", groups=2)
    path = save(tmp_path, text, module.state_dict())
    with opened(path, Options()) as job:
        name = next(info.name for info in job.topology.widths.values() if info.name.endswith("groups"))
    settings: dict[str, Any] = {"add": 1} if command == "expand" else {"units": [1]}
    report = getattr(netgrow_cli, command)(path, width=name, probes=64, **settings)
    after = netgrow_cli.fit(Attention(heads=6, groups=3).double(), report.output).eval()
    assert Edit(report, path, module, after, {}, {}).distance(inputs(7, TIME, 6)) < EXACT
    fused = torch.load(report.output, weights_only=True)["q.weight"].unflatten(0, (2, 3, 3))
    torch.testing.assert_close(fused[:, 0], module.q.weight.unflatten(0, (2, 2, 3))[:, 0])


# -- queries, keys and values from one matrix -----------------------------------------------------------------------


class Fused(nn.Module):
    """One matrix for queries, keys and values, as several families lay it out."""

    def __init__(self, layout: str, heads: int = 2, size: int = 3) -> None:
        super().__init__()
        self.layout, self.heads = layout, heads
        self.qkv, self.o = nn.Linear(6, 3 * heads * size), nn.Linear(heads * size, 4)
        if layout == "columns":
            self.qkv.weight = nn.Parameter(torch.zeros(6, 3 * heads * size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = x @ self.qkv.weight + self.qkv.bias if self.layout == "columns" else self.qkv(x)
        heads = self.heads
        if self.layout == "turned":  # (3 heads size), as a ViT
            q, k, v = made.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        elif self.layout == "in turns":  # (heads 3 size), as GPT-NeoX
            q, k, v = made.unflatten(-1, (heads, -1)).transpose(1, 2).chunk(3, -1)
        else:  # q + k + v, as Phi-3, or as columns, as GPT-2
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in made.chunk(3, -1))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def cut(source: str) -> dict[str, str]:
    return {
        "parts": f"op: chunk, from: {source}, chunks: 3, axis: -1",
        **{f"{n}g": f"op: reshape, from: 'parts[{i}]', shape: [0, 0, 2, -1]" for i, n in enumerate("qkv")},
        **{n: f"op: transpose, from: {n}g, axes: [1, 2]" for n in "qkv"},
        "mix": "op: attention, from: [q, k, v]",
    }


FUSED = {
    "turned": {
        "grid": "op: reshape, from: qkv, shape: [0, 0, 3, 2, -1]",
        "turn": "op: permute, from: grid, axes: [2, 0, 3, 1, 4]",
        "parts": "op: unbind, from: turn",
        "mix": "op: attention, from: ['parts[0]', 'parts[1]', 'parts[2]']",
    },
    "in turns": {
        "grid": "op: reshape, from: qkv, shape: [0, 0, 2, -1]",
        "turn": "op: transpose, from: grid, axes: [1, 2]",
        "parts": "op: chunk, from: turn, chunks: 3, axis: -1",
        "mix": "op: attention, from: ['parts[0]', 'parts[1]', 'parts[2]']",
    },
    "rows": cut("qkv"),
    "columns": cut("qkv"),
}


def fused_spec(layout: str) -> str:
    op = "linear_io" if layout == "columns" else "linear"
    layers = {"qkv": f"op: {op}, from: x", **FUSED[layout]}
    layers |= {"back": "op: transpose, from: mix, axes: [1, 2]", "flat": "op: flatten, from: back, start: 2"}
    return spec_of(f"x: [batch, {TIME}, 6]", "o", **layers, o="op: linear, from: flat")


@pytest.mark.parametrize(("command", "settings"), (
    ("expand", {"add": 2}), ("expand", {"add": 2, "init": "antisymmetric"}), ("split", {"units": [1]}),
))  # fmt: skip
@pytest.mark.parametrize("what", ("heads", "size"))
@pytest.mark.parametrize("layout", FUSED)
def test_fused(tmp_path: Path, layout: str, what: str, command: str, settings: dict[str, Any]) -> None:
    module, text = randomise(Fused(layout)).double(), fused_spec(layout)
    path = save(tmp_path, text, module.state_dict())
    wanted = {"heads": 2, "size": 3}[what]
    with opened(path, Options()) as job:
        names = [i.name for i in job.topology.widths.values() if i.size == wanted and "qkv" in i.producers]
    # Values have a size of their own here, which the module's chunk ties to that of keys.
    report = getattr(netgrow_cli, command)(path, width=names, probes=64, check_learnable=True, **settings)
    heads, size = (report.plan.changes[0].after, 3) if what == "heads" else (2, report.plan.changes[0].after)
    after = netgrow_cli.fit(Fused(layout, heads, size).double(), report.output).eval()
    assert Edit(report, path, module, after, {}, {}).distance(inputs(7, TIME, 6)) < EXACT
    assert report.folded is not None and not report.folded.differing
    assert report.learnable is not None and report.learnable.good
    assert report.plan.rounds == (what == "size")


# -- what lies between, and what else reads -------------------------------------------------------------------------


class Between(nn.Module):
    """One head, whose queries (and keys) something happens to before they meet."""

    def __init__(self, way: str, size: int = 4) -> None:
        super().__init__()
        self.way, sizes = way, size
        self.q, self.k, self.v = nn.Linear(6, sizes), nn.Linear(6, sizes), nn.Linear(6, 5)
        self.o = nn.Linear(sizes if way == "read" else 5, 3)
        self.place, self.gate = nn.Parameter(torch.zeros(TIME, sizes)), nn.Linear(6, sizes)
        self.q_norm, self.k_norm = nn.RMSNorm(sizes, 1e-6), nn.RMSNorm(sizes, 1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.way == "place":
            q = (q + self.place) * 0.7
        elif self.way == "gate":
            q = q * self.gate(x).sigmoid()
        elif self.way == "norms":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.way == "tanh":
            q, k = q.tanh(), k.tanh()
        elif self.way == "tied":
            k = self.q(x)
        elif self.way == "keys pass":
            q = q.tanh()
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1)
        if self.way == "read":
            return self.o(q) + y[..., :3]
        if self.way == "both":
            return self.o(F.scaled_dot_product_attention(k[:, None], q[:, None], v[:, None]).squeeze(1) + y)
        return self.o(y)


BETWEEN = {
    "place": {"sum": "op: add, from: [q, place]", "qq": "op: mul, from: sum, by: 0.7", "kk": "op: identity, from: k"},
    "gate": {"gate": "op: linear, from: x", "open": "op: sigmoid, from: gate", "qq": "op: mul, from: [q, open]",
             "kk": "op: identity, from: k"},
    "norms": {"q_norm": "op: rms_norm, from: q", "k_norm": "op: rms_norm, from: k",
              "qq": "op: identity, from: q_norm", "kk": "op: identity, from: k_norm"},
    "tanh": {"qq": "op: tanh, from: q", "kk": "op: tanh, from: k"},
    "tied": {"qq": "op: identity, from: q", "kk": "op: identity, from: q"},
    "keys pass": {"qq": "op: tanh, from: q", "kk": "op: identity, from: k"},
    "read": {"qq": "op: identity, from: q", "kk": "op: identity, from: k"},
    "both": {"qq": "op: identity, from: q", "kk": "op: identity, from: k"},
}  # fmt: skip


def between_spec(way: str) -> str:
    layers = dict.fromkeys("qkv", "op: linear, from: x")
    layers["place"] = "op: parameter, params: {weight: place}"
    layers |= BETWEEN[way]
    layers |= {n: f"op: unsqueeze, from: {source}, axis: 1" for n, source in (("qh", "qq"), ("kh", "kk"), ("vh", "v"))}
    layers |= {"mix": "op: attention, from: [qh, kh, vh]", "y": "op: squeeze, from: mix, axis: 1"}
    if way == "read":
        layers |= {"o": "op: linear, from: q", "part": "op: slice, from: y, start: 0, stop: 3",
                   "out": "op: add, from: [o, part]"}  # fmt: skip
    elif way == "both":
        layers |= {"mix2": "op: attention, from: [kh, qh, vh]", "y2": "op: squeeze, from: mix2, axis: 1",
                   "s": "op: add, from: [y2, y]", "o": "op: linear, from: s"}  # fmt: skip
    else:
        layers["o"] = "op: linear, from: y"
    text = spec_of(f"x: [batch, {TIME}, 6]", "out" if way == "read" else "o", **layers)
    return text + "ignore: ['gate.*', 'place', '*_norm.*', 'k.*']\n"


def between(folder: Path, way: str, command: str, **settings: Any) -> Edit:
    module, text = randomise(Between(way)).double(), between_spec(way)
    name = width(folder, text, module, 4)
    return edit(folder, text, module, command, width=name, **settings)


@pytest.mark.parametrize("way", ("place", "gate", "keys pass", "read", "both"))
def test_what_carries(tmp_path: Path, way: str) -> None:
    for command, settings in (("expand", {"add": 2}), ("split", {"units": [1, 2]}),
                              ("expand", {"add": 2, "init": "antisymmetric"})):  # fmt: skip
        done = between(tmp_path, way, command, force=True, **settings)
        assert done.distance(inputs(7, TIME, 6)) < EXACT
        # Where queries bend, or where something else reads them, keys carry.
        carries = "k" if way in ("keys pass", "read") else "q"
        scaled = done.new[f"{carries}.weight"][0] / done.old[f"{carries}.weight"][0]
        torch.testing.assert_close(scaled, torch.full_like(scaled, math.sqrt(6 / 4)))
        plain = done.new[f"{'q' if carries == 'k' else 'k'}.weight"]
        assert torch.equal(plain[0], done.old[f"{'q' if carries == 'k' else 'k'}.weight"][0])


@pytest.mark.parametrize(("way", "reason"), (
    ("tanh", "passes 'qq', which is not linear; .* passes 'kk', which is not linear"),
    ("tied", "the rows that 'mix' reads are read by 'q*kk' too"),
))  # fmt: skip
@pytest.mark.parametrize("command", ("expand", "split"))
def test_what_cannot_carry(tmp_path: Path, way: str, reason: str, command: str) -> None:
    with pytest.raises(Refused, match=f"(?s){command} of q: 'mix' sums over it.*{reason}"):
        between(tmp_path, way, command, **({"add": 2} if command == "expand" else {"units": [1]}))


def test_norms_of_queries_and_keys(tmp_path: Path) -> None:
    """A gain carries: what copies pass on, and what makes up for the new size."""
    done = between(tmp_path, "norms", "split", every=True)
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    gain = done.new["q_norm.weight"].reshape(2, 4)
    assert not torch.allclose(gain[0], gain[1])
    torch.testing.assert_close(gain.sum(0), done.old["q_norm.weight"] * math.sqrt(2))
    with pytest.raises(Refused, match="`split` with all units"):
        between(tmp_path, "norms", "expand", add=2)
    module, text = randomise(Between("norms")).double(), between_spec("norms")
    with torch.no_grad():
        for tensor in (module.q.weight, module.q.bias, module.k.weight, module.k.bias):
            tensor[1] = 0.0
    done = edit(tmp_path, text, module, "prune", width="q", units=[1])
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    ratio = done.new["q_norm.weight"][0] / done.old["q_norm.weight"][0]
    assert float(ratio) == pytest.approx(1.0)
    assert float(done.new["k_norm.weight"][0] / done.old["k_norm.weight"][0]) == pytest.approx(math.sqrt(4 / 3))


class Partial(nn.Module):
    """Queries of two parts, one of which is bound to positions (partial rotary)."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = size
        self.q, self.k, self.v = nn.Linear(6, size + 2), nn.Linear(6, size + 2), nn.Linear(6, 4)
        self.o = nn.Linear(4, 3)
        turns = torch.arange(TIME)[:, None] * torch.ones(2)
        self.register_buffer("cos", turns.cos().double(), persistent=False)
        self.register_buffer("sin", turns.sin().double(), persistent=False)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        free, bound = x[..., :-2], x[..., -2:]
        other = torch.stack((-bound[..., 1], bound[..., 0]), -1)
        return torch.cat((free, bound * self.cos + other * self.sin), -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.turned(self.q(x)), self.turned(self.k(x)), self.v(x)
        return self.o(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1) @ v)


# -- from the model's code ------------------------------------------------------------------------------------------


def traced(module: nn.Module) -> str:
    return trace_model(copy.deepcopy(module).float(), [Given(None, "float32", (2, TIME, 6), None)]).text


@pytest.mark.parametrize(
    "way", ("default", "stated", "written", "einsum", "linear", "queries", "both", "literal", "other")
)
def test_code_that_computes_its_scale_from_the_size(tmp_path: Path, way: str) -> None:
    """The scale follows in the real code, so that what was traced must say so."""
    module = randomise(Attention(way)).double()
    text = traced(module)
    name = width(tmp_path, text, module, 3)
    for command, settings in (("expand", {"add": 2}), ("split", {"units": [1]})):
        done = edit(tmp_path, text, module, command, width=name, **settings)
        assert done.distance(inputs(2, TIME, 6)) < EXACT
        assert done.report.plan.rounds == (way not in ("stated", "linear", "other"))


@pytest.mark.parametrize("command", ("expand", "split"))
@pytest.mark.parametrize("layout", FUSED)
def test_fused_code(tmp_path: Path, layout: str, command: str) -> None:
    module = randomise(Fused(layout)).double()
    path = save(tmp_path, traced(module), module.state_dict())
    with opened(path, Options()) as job:
        names = [i.name for i in job.topology.widths.values() if i.size == 3 and i.producers]
    assert names
    settings: dict[str, Any] = {"add": 2} if command == "expand" else {"units": [1]}
    report = getattr(netgrow_cli, command)(path, width=names, probes=64, **settings)
    after = netgrow_cli.fit(Fused(layout).double(), report.output).eval()
    assert Edit(report, path, module, after, {}, {}).distance(inputs(2, TIME, 6)) < EXACT


def test_parts_that_are_bound_to_positions(tmp_path: Path) -> None:
    """The rows of both parts make up for the size; only the free one grows, and the other says why it does not."""
    module = randomise(Partial()).double()
    text = traced(module)
    name = width(tmp_path, text, module, 3)
    for command, settings in (("expand", {"add": 2}), ("split", {"units": [1]})):
        done = edit(tmp_path, text, module, command, width=name, **settings)
        assert done.distance(inputs(2, TIME, 6)) < EXACT
        factor = done.new["q.weight"][-1] / done.old["q.weight"][-1]
        torch.testing.assert_close(
            factor, torch.full_like(factor, math.sqrt((5 + len(done.report.plan.changes[0].fresh or [1])) / 5))
        )


# -- rounding, folding back, optimizer state ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("add", "rounds"), ((9, False), (2, True)))
def test_what_rounds(tmp_path: Path, dtype: torch.dtype, add: int, rounds: bool) -> None:
    """A size that becomes four times as large needs a factor of 2, which is exact in every dtype."""
    module, text = randomise(Attention()).to(dtype), spec("default")
    done = edit(tmp_path, text, module, "expand", width=width(tmp_path, text, module, 3), add=add)
    assert done.report.plan.rounds == rounds
    limit = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype] if rounds else EXACT
    assert done.distance(inputs(7, TIME, 6)) < limit
    assert done.report.folded is not None and not done.report.folded.differing
    assert set(done.report.folded.left) == {"q.weight", "q.bias"}
    result = by_record(tmp_path / "net.pt", done.path)
    assert result is not None and not result.differing


@pytest.mark.parametrize(("command", "settings"), (
    ("expand", {"add": 2, "init": "antisymmetric"}), ("split", {"units": [1]}),
))  # fmt: skip
def test_folding_back_sees_every_number(tmp_path: Path, command: str, settings: dict[str, Any]) -> None:
    done = changed(tmp_path, "default", command, **settings)
    for name in ("q.weight", "q.bias", "k.weight", "k.bias"):
        for place in range(0, done.new[name].numel(), 23 if "weight" in name else 7):
            bad = {key: tensor.clone() for key, tensor in done.new.items()}
            bad[name].view(-1)[place] += 0.5
            torch.save(bad, done.path)
            result = by_record(tmp_path / "net.pt", done.path)
            assert result is not None and result.differing == (name,)


def test_moments_go_along(tmp_path: Path) -> None:
    """Queries are multiplied, so that their gradients shrink; shared ones keep theirs, and copied keys share them."""
    module, text = randomise(Attention()).float(), spec("default")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    x, wanted = inputs(16, TIME, 6).float(), inputs(16, TIME, 4, seed=1).float()
    for _ in range(10):
        optimizer.zero_grad()
        (module(x) - wanted).square().mean().backward()
        optimizer.step()
    name = width(tmp_path, text, module, 3)
    path = save(tmp_path, text, {"model": module.state_dict(), "optimizer": optimizer.state_dict()})
    names = [name for name, _ in module.named_parameters()]

    def moments(file: Path) -> dict[str, dict[str, torch.Tensor]]:
        state = torch.load(file, weights_only=True)["optimizer"]["state"]
        return {name: state[n] for n, name in enumerate(names)}

    old = moments(path)
    new = moments(netgrow_cli.split(path, width=name, units=[1], probes=16).output)
    s = math.sqrt(4 / 3)
    for key, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        for tensor in ("q.weight", "q.bias", "k.weight", "k.bias"):
            before, after = (found[tensor][key].unflatten(0, (4, -1)) for found in (old, new))
            factor = torch.ones(4)
            factor[[1, 3]] = 0.5**power if tensor.startswith("k") else 1.0
            factor = factor / (s**power if tensor.startswith("q") else 1.0)
            wanted = before[:, [0, 1, 2, 1]] * factor.reshape(1, 4, *[1] * (before.dim() - 2))
            torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-12)
    # The gradients themselves say the same: those of the old module, times these factors.
    fitted = netgrow_cli.fit(Attention(), netgrow_cli.split(path, width=name, units=[1], noise=0.0, probes=16,
                                                            output=tmp_path / "even.pt").output)  # fmt: skip
    for made in (module, fitted):
        made.zero_grad()
        (made(x) - inputs(16, TIME, 4, seed=1).float()).square().mean().backward()
    for tensor, copies in (("q", 1 / s), ("k", 0.5)):
        before = getattr(module, tensor).weight.grad.unflatten(0, (4, -1))
        after = getattr(fitted, tensor).weight.grad.unflatten(0, (4, -1))
        torch.testing.assert_close(after[:, 3], before[:, 1] * copies, rtol=1e-3, atol=1e-6)


def by_record(old: Path, new: Path) -> FoldBack | None:
    with opened(old, Options()) as one, opened(new, Options()) as other:
        found = fold_back_record(one, other.checkpoint, new)
    return found.folded if found is not None else None


def test_rows_that_another_layer_has_too(tmp_path: Path) -> None:
    """One tensor under two layers is one: its rows cannot be queries here and something else there."""
    text = between_spec("read").replace("o: {op: linear, from: q}", "o: {op: linear, from: again}").replace(
        "  part:", "  again: {op: linear, from: x, params: {weight: q.weight, bias: q.bias}}\n  part:"
    )  # fmt: skip
    module = randomise(Between("read")).double()
    done = edit(tmp_path, text, module, "split", width="q", units=[1])
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    assert torch.equal(done.new["q.weight"][:4], done.old["q.weight"])


def test_numbers_of_the_code_along_heads_say_so(tmp_path: Path) -> None:
    """ALiBi's slopes: one for each head, so that heads may not change; sizes may."""
    text = spec("positions").replace("op: parameter, params: {weight: table}", f"op: constant, value: {[[[0.5]]] * 4}")
    text += "ignore: [table]\n"
    path = save(tmp_path, text, randomise(Attention("positions")).state_dict())
    with opened(path, Options()) as job:
        frozen = {info.size: info.frozen for info in job.topology.widths.values() if "q" in info.producers}
    assert frozen == {4: "table holds numbers of the code along it", 3: None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("command", "settings"), (("expand", {"add": 4}), ("split", {"units": [1, 2]})))
def test_t5_with_larger_heads(tmp_path: Path, command: str, settings: dict[str, Any]) -> None:
    """Its configuration has a size of heads of its own, its attention no scale."""
    transformers = pytest.importorskip("transformers")

    def model(folder: Path, size: int) -> Any:
        config = transformers.T5Config(d_model=16, d_kv=size, d_ff=8, num_layers=1, num_heads=2, vocab_size=32)
        config.architectures = ["T5EncoderModel"]
        config.save_pretrained(folder)
        torch.manual_seed(0)
        made = transformers.T5EncoderModel._from_config(config).double().eval()
        with torch.no_grad():
            for tensor in made.parameters():
                tensor.copy_(torch.randn_like(tensor) * 0.3)
        return made

    before = model(tmp_path / "small", 6)
    path = save(tmp_path, trace_source(str(tmp_path / "small"), []).text, before.state_dict())
    with opened(path, Options()) as job:
        names = [info.name for info in job.topology.widths.values() if info.size == 6 and info.producers]
    assert len(names) == 2  # of queries and keys, of values
    report = getattr(netgrow_cli, command)(path, width=names, probes=4, **settings)
    after = model(tmp_path / "large", report.plan.changes[0].after)
    after.load_state_dict(torch.load(report.output, weights_only=True), strict=True)
    tokens = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = (made(tokens).last_hidden_state for made in (before, after))
    assert float((one - other).abs().max() / one.abs().max()) < EXACT
    assert report.folded is not None and report.folded.whole


@pytest.mark.parametrize("seed", range(24))
def test_several_widths_at_once(tmp_path: Path, seed: int) -> None:
    """Heads, sizes and the stream that is read, in one plan: rows and columns of one tensor change together."""
    rng = random.Random(seed)
    way = rng.choice([*MIX, *FUSED])
    module = randomise(Attention(way) if way in MIX else Fused(way), seed).double()
    text = (spec(way) if way in MIX else fused_spec(way)).replace("from: x}", "from: stream}")
    text = text.replace("layers:\n", "layers:\n  into: {op: linear, from: x}\n  stream: {op: tanh, from: into}\n")
    into = randomise(nn.Linear(6, 6), seed).double().state_dict()
    old = {**module.state_dict(), **{f"into.{name}": tensor for name, tensor in into.items()}}
    with opened(save(tmp_path, text, old), Options()) as job:
        topology, infos = job.topology, dict(job.checkpoint.tensors)
        graph, source = job.network.graph, job.found.spec
    free = [info for info in topology.widths.values() if info.frozen is None and info.size > 1]
    count, init = rng.randint(2, 4), rng.choice(("match", "antisymmetric"))
    changes = []
    for info in rng.sample(free, min(count, len(free))):
        units = rng.sample(range(info.size), 2)
        grown = expand(info.width.id, info.size, 2, init)
        changes.append(rng.choice((grown, split(info.width.id, info.size, units, 0.3))))
    for tie in topology.ties:  # (as the commands do)
        for other in [leaf for piece in tie.pieces for leaf in leaves(piece)]:
            tied = {leaf.id for piece in tie.pieces for leaf in leaves(piece)}
            if tied & {change.width for change in changes} and other.id not in {change.width for change in changes}:
                changes.append(expand(other.id, other.size, 2, init))
    plan = make_plan(topology, infos, changes)
    new = {name: apply_edit(t, plan.edits[name], seed) if name in plan.edits else t for name, t in old.items()}
    assert not fold_back(topology, plan, *map(sources, (old.__getitem__, new.__getitem__))).differing
    shapes = {name: TensorInfo(name, tuple(t.shape), "F64") for name, t in new.items()}
    changed = solve(parse_spec(rewrite_spec(source, graph, plan), "the new spec").graph(shapes), shapes)
    given = {"x": inputs(3, TIME, 6, seed=seed)}
    (one,), (other,) = (
        run(made, state.__getitem__, given, dtype=torch.float64) for made, state in ((topology, old), (changed, new))
    )
    assert float((one - other).abs().max() / one.abs().max()) < EXACT
