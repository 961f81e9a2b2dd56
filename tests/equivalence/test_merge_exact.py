"""Merging: multiples where no operation minds, near ones within a tolerance, and splits that are undone bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import netgrow_cli
from netgrow_cli import NotEquivalent, Refused
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.surgery import duplicates
from netgrow_cli.surgery.duplicates import duplicate_units
from netgrow_cli.surgery.unit_rows import UnitRows
from tests.equivalence.edits import Edit, edit, inputs, randomise, save, spec_of
from tests.equivalence.networks import build
from tests.equivalence.test_attention_exact import Attention
from tests.equivalence.test_attention_exact import spec as attention
from tests.equivalence.test_moments import by_name, trained
from tests.equivalence.test_recurrent_exact import forms, made
from tests.equivalence.test_recurrent_exact import text_of as recurrent
from tests.equivalence.test_surgery_exact import MLP, Mlp, Normed, normed, widths

EXACT = 1e-12
LOW = (torch.float32, torch.float16, torch.bfloat16)


def gone(done: Edit) -> list[tuple[int, int, float]]:
    return [entry for change in done.report.plan.changes for entry in change.absorbed]


def merged(folder: Path, text: str, module: nn.Module, **settings: Any) -> Edit:
    return edit(folder, text, module, "prune", duplicates=True, **{"layer": "a", **settings})


# -- multiples -------------------------------------------------------------------------------------------------


def multiplied(module: Any, factor: float, gone: int = 4, kept: int = 1) -> Any:
    with torch.no_grad():
        module.a.weight[gone] = module.a.weight[kept] * factor
        module.a.bias[gone] = module.a.bias[kept] * factor
    return module


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[float, ...], tuple[float, ...]]] = {
    # By operation: what it is in torch, factors at which units are merged, and at which they are not.
    "relu": (torch.relu, (2.0, 0.37), (-1.0,)),
    "leaky_relu": (functional.leaky_relu, (3.0,), (-1.0,)),
    "abs": (torch.abs, (3.0,), (-1.0,)),
    "identity": (lambda x: x, (3.0, -0.7, -1.0), ()),
    "neg": (torch.neg, (3.0, -0.7), ()),
    "tanh": (torch.tanh, (-1.0,), (2.0, -2.0)),
    "hardshrink": (functional.hardshrink, (-1.0,), (2.0,)),
    "gelu": (functional.gelu, (), (2.0, -1.0)),
    "silu": (functional.silu, (), (2.0, -1.0)),
    "sigmoid": (torch.sigmoid, (), (2.0, -1.0)),
}
PAIRS = [
    (op, factor, good)
    for op, (_, yes, no) in FUNCTIONS.items()
    for good, factors in ((True, yes), (False, no))
    for factor in factors
]


@pytest.mark.parametrize(("op", "factor", "good"), PAIRS)
def test_multiples(tmp_path: Path, op: str, factor: float, good: bool) -> None:
    module = multiplied(randomise(Mlp(FUNCTIONS[op][0])).double(), factor)
    done = merged(tmp_path, MLP.replace("relu", op), module)
    assert done.new["a.weight"].shape == (5 if good else 6, 4)
    if good:
        ((one, other, found),) = gone(done)
        assert (one, other) == (4, 1) and found == pytest.approx(factor, rel=1e-14)
        close = done.old["b.weight"][:, 1] + factor * done.old["b.weight"][:, 4]
        torch.testing.assert_close(done.new["b.weight"][:, 1], close, rtol=1e-14, atol=0)
        assert "1 of 6 units are copies of others: 1 times a factor" in done.report.notes[0]
    assert done.distance(inputs(9, 4)) < EXACT


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("factor", (2.0, 0.37, 11.0))
def test_multiples_that_are_rounded(tmp_path: Path, dtype: torch.dtype, factor: float) -> None:
    """As near as the dtype holds them, and no nearer than that is asked for."""
    module = multiplied(randomise(Mlp()).to(dtype), factor)
    done = merged(tmp_path, MLP, module)
    assert done.new["a.weight"].shape == (5, 4)
    assert done.distance(inputs(9, 4)) < 4 * torch.finfo(dtype).eps
    with torch.no_grad():
        module.a.weight[4] += 16 * torch.finfo(dtype).eps * torch.tensor([1, -1, 1, -1], dtype=dtype) * factor
    assert merged(tmp_path / "off", MLP, module).new["a.weight"].shape == (6, 4)


class Slopes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(x)))


def test_slopes_must_be_equal(tmp_path: Path) -> None:
    text = MLP.replace("r: {op: relu, from: a}", "act: {op: prelu, from: a}").replace("from: r", "from: act")
    module = multiplied(randomise(Slopes()).double(), 2.0)
    assert not gone(merged(tmp_path / "unlike", text, module))
    with torch.no_grad():
        module.act.weight[4] = module.act.weight[1]
    done = merged(tmp_path, text, module)
    assert gone(done) == [(4, 1, 2.0)] and done.distance(inputs(9, 4)) < EXACT


class Filters(nn.Module):
    """Filters with a batch_norm behind them, pooled and flattened."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(2, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(functional.max_pool2d(self.n(self.a(x)).relu(), 2).flatten(1))


FILTERS = spec_of(
    "x: [batch, 2, 6, 6]", "b", a="op: conv2d, from: x", n="op: batch_norm, from: a", r="op: relu, from: n",
    p="op: max_pool2d, from: r, kernel_size: 2", f="op: flatten, from: p", b="op: linear, from: f",
)  # fmt: skip


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("way", ("copy", "gain", "row", "unlike"))
def test_filters_are_compared_behind_their_norm(tmp_path: Path, bias: bool, way: str) -> None:
    """By what a batch_norm makes of them: a row twice as large that it divides by twice as much is the same filter."""
    module = randomise(Filters(bias)).double()
    n = module.n
    with torch.no_grad():
        for tensor in (*module.a.parameters(), n.weight, n.bias, n.running_mean, n.running_var):
            tensor[4] = tensor[1]
        if way == "gain":
            n.weight[4] *= 3.0
            n.bias[4] *= 3.0
        if way == "row":
            for tensor in (*module.a.parameters(), n.running_mean):
                tensor[4] *= 2.0
            n.running_var[4] = 4.0 * (n.running_var[1] + n.eps) - n.eps
        if way == "unlike":
            n.weight[4] *= -1.0
    done = merged(tmp_path, FILTERS, module)
    found = [(one, other, round(factor, 12)) for one, other, factor in gone(done)]
    assert found == ([] if way == "unlike" else [(4, 1, 3.0 if way == "gain" else 1.0)])
    assert done.distance(inputs(9, 2, 6, 6)) < EXACT


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.b = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x) * self.g(x).relu())


def test_a_product_is_no_multiple(tmp_path: Path) -> None:
    text = spec_of("x: [batch, 4]", "b", a="op: linear, from: x", g="op: linear, from: x", r="op: relu, from: g",
                   p="op: mul, from: [a, r]", b="op: linear, from: p")  # fmt: skip
    module = multiplied(randomise(Gate()).double(), 2.0)
    with torch.no_grad():
        module.g.weight[4], module.g.bias[4] = 2 * module.g.weight[1], 2 * module.g.bias[1]
    assert not gone(merged(tmp_path, text, module))
    with torch.no_grad():
        for layer in (module.a, module.g):
            layer.weight[4], layer.bias[4] = layer.weight[1], layer.bias[1]
    done = merged(tmp_path / "equal", text, module)
    assert gone(done) == [(4, 1, 1.0)] and done.distance(inputs(9, 4)) < EXACT


# -- near ones ---------------------------------------------------------------------------------------------------


def test_near_ones_within_a_tolerance(tmp_path: Path) -> None:
    module = multiplied(randomise(Mlp()).double(), 1.0)
    with torch.no_grad():
        module.a.weight[4] += 1e-4 * module.a.weight[1].norm() * torch.tensor([0.5, -0.5, 0.5, 0.5])
    assert not gone(merged(tmp_path / "default", MLP, module))
    assert not gone(merged(tmp_path / "narrow", MLP, module, tolerance=1e-5))
    done = merged(tmp_path, MLP, module, tolerance=1e-3)
    ((one, other, factor),) = gone(done)
    assert (one, other) == (4, 1) and factor == pytest.approx(1.0, abs=1e-3)
    assert "1 nearly (within 0.001 of their norm)" in done.report.notes[0]
    assert 1e-7 < done.distance(inputs(99, 4)) < 1e-3
    assert done.report.equivalence is not None and done.report.equivalence.tolerance == 1e-3


def test_near_ones_whose_outputs_are_farther_off(tmp_path: Path) -> None:
    """Rows within the tolerance need not give outputs within it; then it is refused, or accepted as drift."""
    module = multiplied(randomise(Mlp()).double(), 1.0)
    with torch.no_grad():
        module.a.weight[4] += 8e-4 * module.a.weight[1].norm() * torch.tensor([0.5, -0.5, 0.5, 0.5])
        module.b.weight[:, 4] *= 1e3
        module.b.weight[:, 1] = -module.b.weight[:, 4]  # (what they pass on all but cancels)
    with pytest.raises(NotEquivalent, match=r"not quite alike were merged.*--allow-drift"):
        merged(tmp_path, MLP, module, tolerance=1e-3)
    assert gone(merged(tmp_path, MLP, module, tolerance=1e-3, allow_drift=1.0))


# -- finding them --------------------------------------------------------------------------------------------------


def crowd(folder: Path, units: int, inner: int, near: float, dtype: torch.dtype = torch.float64) -> Path:
    """A layer of random rows, of which each of the second half is a multiple of one of the first, nearly."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(units, inner, generator=generator, dtype=torch.float64)
    half = units // 2
    noise = torch.randn(half, inner, generator=generator, dtype=torch.float64)
    noise *= near * weight[:half].norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    factor = torch.rand(half, 1, generator=generator, dtype=torch.float64) * 3 + 0.1
    weight[half:] = factor * (weight[:half] + noise)
    text = MLP.replace("batch, 4", f"batch, {inner}")
    state = {"a.weight": weight.to(dtype), "b.weight": torch.randn(2, units, generator=generator).to(dtype)}
    return save(folder, text, state)


@pytest.mark.parametrize("near", (0.0, 0.9e-3))
@pytest.mark.parametrize("inner", (3, 40))
def test_none_is_missed_at_the_edge_of_a_cell(tmp_path: Path, inner: int, near: float) -> None:
    units = 60 if inner == 3 else 800
    with opened(crowd(tmp_path, units, inner, near), Options()) as job:
        found = duplicate_units(job.network, job.topology.by_name("a").width.id, 1e-3)
    assert [(pair.gone, pair.kept) for pair in found] == [(n + units // 2, n) for n in range(units // 2)]
    assert all((pair.error <= 1e-3) and (pair.kind == ("near" if near else "multiple")) for pair in found)


def test_no_two_are_compared_without_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3000 units 1500 pairs are compared, not four million; and few rows are wide at a time."""
    compared: list[int] = []
    wide: list[int] = []
    compare, vectors = duplicates._Search._compare, UnitRows.vectors

    def comparing(*given: Any) -> Any:
        compared.append(1)
        return compare(*given)

    def reading(self: UnitRows, units: Any, *more: Any) -> Any:
        wide.append(len(units))
        return vectors(self, units, *more)

    monkeypatch.setattr(duplicates._Search, "_compare", comparing)
    monkeypatch.setattr(UnitRows, "vectors", reading)
    with opened(crowd(tmp_path, 3000, 600, 0.0, torch.bfloat16), Options()) as job:
        found = duplicate_units(job.network, job.topology.by_name("a").width.id)
    assert len(found) == 1500 and len(compared) < 1600
    assert max(wide) * 600 <= 1 << 20


# -- merging undoes splitting --------------------------------------------------------------------------------------


def undone(folder: Path, text: str, module: nn.Module, names: list[str], **settings: Any) -> None:
    path = save(folder, text, module.state_dict())
    there = netgrow_cli.split(path, width=names, output=folder / "there.pt", probes=16, **settings)
    ids = [change.width for change in there.plan.changes]
    with opened(there.output, Options()) as job:
        names = [job.topology.widths[width].name for width in ids]
    report = netgrow_cli.prune(there.output, width=names, duplicates=True, output=folder / "back.pt", probes=16)
    merged = {change.width: change.after for change in report.plan.changes}
    assert merged == {change.width: change.before for change in there.plan.changes}
    back = torch.load(folder / "back.pt", weights_only=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("dtype", (torch.float64, *LOW), ids=str)
@pytest.mark.parametrize("ways", (2, 3, 4))
def test_of_any_widths_at_once(tmp_path: Path, dtype: torch.dtype, ways: int) -> None:
    undone(tmp_path / "mlp", MLP, randomise(Mlp()).to(dtype), ["a"], ways=ways, every=True)
    undone(tmp_path / "conv", FILTERS, randomise(Filters(bias=True)).to(dtype), ["a"], ways=ways, units=[0, 3])


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("ways", (2, 3))
def test_of_layers_behind_each_other(tmp_path: Path, dtype: torch.dtype, ways: int) -> None:
    """Copies of the second layer read copies of the first with noise of their own, and are the same all the same."""
    text = spec_of("x: [batch, 4]", "c", a="op: linear, from: x", r="op: relu, from: a", b="op: linear, from: r",
                   s="op: gelu, from: b", c="op: linear, from: s")  # fmt: skip

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    undone(tmp_path, text, randomise(Deep()).to(dtype), ["b", "a"], ways=ways, every=True)


@forms
def test_of_recurrent_units_that_read_each_other(tmp_path: Path, form: Any) -> None:
    """All layers and directions: their sizes are tied, and merged evenly."""
    module = made(form)
    with opened(save(tmp_path / "look", recurrent(form), module.state_dict()), Options()) as job:
        name = next(w.name for w in job.topology.widths.values() if w.frozen is None and w.name.startswith("rnn"))
    undone(tmp_path, recurrent(form), module.float(), [name], units=[1])


@pytest.mark.parametrize("size", (3, 4, 5))
def test_of_attention(tmp_path: Path, size: int) -> None:
    """The size of queries and keys, where queries carry and are scaled; heads; the size of values."""
    module, text = randomise(Attention("default")).double(), attention("default")
    (name, *_) = [name for name, many in widths(tmp_path, text, module).items() if many == size]
    there = edit(tmp_path, text, module, "split", width=name, every=True, ways=2)
    text = there.path.with_name(f"{there.path.name}.netgrow.yaml").read_text(encoding="utf-8")
    back = edit(tmp_path / "back", text, there.after, "prune", width=name, duplicates=True)
    for key, tensor in module.state_dict().items():
        torch.testing.assert_close(back.new[key], tensor, rtol=0 if size > 3 else 1e-14, atol=0)


@pytest.mark.parametrize("kind", ("rms_norm", "layer_norm", "group_norm"))
def test_of_all_units_under_a_norm(tmp_path: Path, kind: str) -> None:
    norm = {"rms_norm": nn.RMSNorm(6, 1e-3), "layer_norm": nn.LayerNorm(6), "group_norm": nn.GroupNorm(2, 6)}[kind]
    more = {"rms_norm": ", eps: 0.001", "layer_norm": "", "group_norm": ", groups: 2"}[kind]
    module, text = randomise(Normed(norm)).float(), normed(f"op: {kind}{more}")
    names = [
        name for name, many in widths(tmp_path, text, module).items() if many == (3 if kind == "group_norm" else 6)
    ]
    undone(tmp_path, text, module, names[:1], every=True)


@pytest.mark.parametrize("block", range(3))
def test_of_random_networks(tmp_path: Path, block: int) -> None:
    """One width of each, all its units or the best."""
    done = 0
    for seed in range(block * 8, block * 8 + 8):
        built = build(seed)
        path = tmp_path / f"{seed}.pt"
        torch.save(built.state, path)
        path.with_name(f"{path.name}.netgrow.yaml").write_text(built.text, encoding="utf-8")
        with opened(path, Options()) as job:
            free = [info for info in job.topology.widths.values() if info.frozen is None]
        info = free[seed % len(free)]
        how = {"every": True} if seed % 2 else {"top": 1}
        try:
            there = netgrow_cli.split(path, width=info.name, ways=2 + seed % 3, probes=16, **how)
        except Refused:
            continue
        with opened(there.output, Options()) as job:
            names = [job.topology.widths[change.width].name for change in there.plan.changes]
        report = netgrow_cli.prune(there.output, width=names, duplicates=True, probes=16)
        back = torch.load(report.output, weights_only=True)
        assert all(torch.equal(back[name], tensor) for name, tensor in built.state.items()), (seed, info.name)
        done += 1
    assert done >= 5


@pytest.mark.parametrize("ways", (2, 4))
def test_moments_come_back_too(tmp_path: Path, ways: int) -> None:
    module = randomise(Mlp())
    path, tree = trained(tmp_path, "adamw", module, MLP)
    there = netgrow_cli.split(path, layer="a", units=[0, 5], ways=ways, probes=64).output
    back = netgrow_cli.prune(there, layer="a", duplicates=True, probes=64).output
    new = torch.load(back, weights_only=True)
    assert all(torch.equal(new["model"][name], tensor) for name, tensor in tree["model"].items())
    for name, moments in by_name(tree).items():
        assert all(torch.equal(by_name(new)[name][key], moment) for key, moment in moments.items()), name


# -- sizes that are tied -------------------------------------------------------------------------------------------


class Chunked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.a(x).relu().chunk(2, 1)
        return self.b(one) + self.c(two)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 1), (2, 1), (1, 3), (2, 3)])
def test_as_many_as_all_tied_widths_can(tmp_path: Path, first: int, second: int) -> None:
    text = spec_of("x: [batch, 4]", "s", a="op: linear, from: x", r="op: relu, from: a",
                   h="op: chunk, from: r, chunks: 2", b='op: linear, from: "h[0]"',
                   c='op: linear, from: "h[1]"', s="op: add, from: [b, c]")  # fmt: skip
    module = randomise(Chunked()).double()
    with torch.no_grad():
        for start, count in ((0, first), (6, second)):
            for unit in range(count):
                module.a.weight[start + 1 + unit], module.a.bias[start + 1 + unit] = (
                    module.a.weight[start], module.a.bias[start]
                )  # fmt: skip
    done = merged(tmp_path, text, module)
    assert done.new["a.weight"].shape[0] == 12 - 2 * min(first, second)
    assert done.distance(inputs(9, 4)) < EXACT
    if first != second and min(first, second):
        assert any("as many as in all widths whose sizes are tied" in note for note in done.report.notes)
