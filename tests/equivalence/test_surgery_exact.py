"""What docs and docstrings state as exact, measured in real modules."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli import NotEquivalent, Refused
from tests.equivalence.edits import Edit, edit, inputs, randomise, save, spec_of

EXACT = 1e-12
LOW = (torch.float32, torch.float16, torch.bfloat16)

MLP = spec_of("x: [batch, 4]", "b", a="op: linear, from: x", r="op: relu, from: a", b="op: linear, from: r")


class Mlp(nn.Module):
    def __init__(self, act: Any = torch.relu, bias: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 6), nn.Linear(6, 3, bias), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(x)))


class Normed(nn.Module):
    """A residual stream with a norm in front of its reader."""

    def __init__(self, norm: nn.Module, last: int = 3) -> None:
        super().__init__()
        self.a, self.c, self.norm, self.b = nn.Linear(4, 6), nn.Linear(4, 6), norm, nn.Linear(6, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x) + self.c(x)))


def normed(op: str) -> str:
    return spec_of(
        "x: [batch, 4]",
        "b",
        a="op: linear, from: x",
        c="op: linear, from: x",
        s="op: add, from: [a, c]",
        norm=f"{op}, from: s",
        b="op: linear, from: norm",
    )


# -- shares ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("noise", (0.0, 0.2, 3.0))
@pytest.mark.parametrize("ways", (2, 3, 5))
def test_shares_add_up_to_the_original_bits(tmp_path: Path, dtype: torch.dtype, noise: float, ways: int) -> None:
    module = randomise(Mlp()).to(dtype)
    with torch.no_grad():  # what rounds worst: subnormals, the largest number, negative zero
        module.b.weight[0, :4] = torch.tensor([6e-8, 1e-40, torch.finfo(dtype).max, -0.0]).to(dtype)
    done = edit(tmp_path, MLP, module, "split", layer="a", every=True, noise=noise, ways=ways)
    new = done.new["b.weight"]
    assert new.dtype == dtype
    assert new.shape == (3, 6 * ways)
    # The copies of a unit stand behind the old ones, round by round; summed from the last to the first.
    total = torch.zeros(3, 6, dtype=dtype)
    for copies in reversed(new.split(6, 1)):
        total = (total.double() + copies.double()).to(dtype)
    assert torch.equal(total, done.old["b.weight"])
    for copies in done.new["a.weight"].split(6, 0):
        assert torch.equal(copies, done.old["a.weight"])
    if noise == 0.0 and ways == 3:
        assert torch.equal(new[1, 4] * 2, done.old["b.weight"][1, 4])
        assert torch.equal(new[1, 10] * 4, done.old["b.weight"][1, 4])
    assert done.distance(inputs(9, 4)) < EXACT


def test_noise_is_as_large_as_asked(tmp_path: Path) -> None:
    done = edit(tmp_path, MLP, randomise(Mlp()), "split", layer="a", units=[2], noise=0.2)
    columns = done.new["b.weight"].double()
    difference = (columns[:, 2] - columns[:, 6]) / 2
    size = done.old["b.weight"][:, 2].double().square().mean().sqrt()
    assert 0.02 < float(difference.square().mean().sqrt() / size) < 0.6


# -- norms over the width that grows ----------------------------------------------------------------------


@pytest.mark.parametrize("eps", (1e-5, 0.1))
@pytest.mark.parametrize("kind", ("rms_norm", "layer_norm"))
@pytest.mark.parametrize("init", ("match", "kaiming"))
def test_norms_grow_with_gain_and_eps(tmp_path: Path, kind: str, eps: float, init: str) -> None:
    made = nn.RMSNorm(6, eps) if kind == "rms_norm" else nn.LayerNorm(6, eps)
    module = randomise(Normed(made)).double()
    done = edit(tmp_path, normed(f"op: {kind}, eps: {eps}"), module, "expand", layer="a", add=3, init=init)
    assert done.after.norm.eps == pytest.approx(eps * 6 / 9)
    assert done.after.norm.normalized_shape == (9,)
    torch.testing.assert_close(done.new["norm.weight"][:6], done.old["norm.weight"] * (6 / 9) ** 0.5)
    text = done.path.with_name(f"{done.path.name}.netgrow.yaml").read_text(encoding="utf-8")
    assert f"eps: {eps}" not in text
    assert {(entry.what, entry.layer) for entry in done.report.plan.code} >= {("eps", "norm")}
    assert done.distance(inputs(9, 4)) < EXACT
    done.after.norm.eps = eps
    assert done.distance(inputs(9, 4)) > (1e-3 if eps > 0.01 else EXACT)
    # Their readers may start anywhere: the norm's output is zero there.
    assert bool(done.new["b.weight"][:, 6:].all())


def test_layer_norms_new_units_carry_the_mean(tmp_path: Path) -> None:
    done = edit(
        tmp_path, normed("op: layer_norm"), randomise(Normed(nn.LayerNorm(6))).double(), "expand", layer="a", add=2
    )
    for name in ("a.weight", "a.bias", "c.weight", "c.bias"):
        mean = done.old[name].mean(0)
        torch.testing.assert_close(done.new[name][6:], mean.expand_as(done.new[name][6:]), rtol=1e-14, atol=1e-15)
    assert not bool(done.new["norm.bias"][6:].any())


@pytest.mark.parametrize("ways", (2, 3))
@pytest.mark.parametrize("kind", ("rms_norm", "layer_norm", "group_norm"))
def test_all_units_split_under_a_norm(tmp_path: Path, kind: str, ways: int) -> None:
    made = {"rms_norm": nn.RMSNorm(6, 1e-3), "layer_norm": nn.LayerNorm(6), "group_norm": nn.GroupNorm(2, 6)}[kind]
    op = {
        "rms_norm": "op: rms_norm, eps: 0.001",
        "layer_norm": "op: layer_norm",
        "group_norm": "op: group_norm, groups: 2",
    }
    module, text = randomise(Normed(made)).double(), normed(op[kind])
    width = {"layer": "a"}
    names = widths(tmp_path, text, module)
    if kind == "group_norm":
        width = {"width": next(name for name, size in names.items() if size == 3)}
    done = edit(tmp_path, text, module, "split", every=True, ways=ways, **width)
    assert done.distance(inputs(9, 4)) < EXACT
    assert not done.report.plan.rounds
    if kind != "group_norm":
        with pytest.raises(Refused, match="all units equally"):
            edit(tmp_path / "some", text, module, "split", layer="a", units=[1])


class Joined(nn.Module):
    """Two layers one after the other, and perhaps three numbers of the input, that one norm sees together."""

    def __init__(self, norm: type[nn.Module], given: bool) -> None:
        super().__init__()
        size = 10 + 3 * given
        self.a, self.c, self.norm, self.b = nn.Linear(4, 6), nn.Linear(4, 4), norm(size), nn.Linear(size, 3)
        self.given = given

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(torch.cat([self.a(x), self.c(x), *([x[:, :3]] if self.given else [])], 1)))


def joined(kind: str, given: bool) -> str:
    more = {"part": "op: slice, from: x, axis: 1, stop: 3"} if given else {}
    return spec_of(
        "x: [batch, 4]",
        "b",
        a="op: linear, from: x",
        c="op: linear, from: x",
        **more,
        all=f"op: concat, from: [a, c{', part' if given else ''}]",
        norm=f"op: {kind}, eps: 0.001, from: all",
        b="op: linear, from: norm",
    )


@pytest.mark.parametrize("kind", ("rms_norm", "layer_norm"))
def test_all_units_of_all_parts_split_under_a_norm(tmp_path: Path, kind: str) -> None:
    made = functools.partial(nn.RMSNorm if kind == "rms_norm" else nn.LayerNorm, eps=1e-3)
    module, text = randomise(Joined(made, given=False)).double(), joined(kind, given=False)
    for ways in (2, 3):
        done = edit(tmp_path / f"{ways}", text, module, "split", layer=["a", "c"], every=True, ways=ways)
        assert done.distance(inputs(9, 4)) < EXACT
    for some in ({"layer": "a", "every": True}, {"layer": ["a", "c"], "units": [0, 1]}):
        with pytest.raises(Refused, match="--units all` of all parts"):
            edit(tmp_path / "some", text, module, "split", **some)
    # What else it sees stays as often as it was.
    module, text = randomise(Joined(made, given=True)).double(), joined(kind, given=True)
    with pytest.raises(Refused, match="weighs all units equally"):
        edit(tmp_path / "given", text, module, "split", layer=["a", "c"], every=True)


@pytest.mark.parametrize("kind", ("rms_norm", "layer_norm", "group_norm"))
def test_fit_reaches_norms_without_parameters(tmp_path: Path, kind: str) -> None:
    made = {
        "rms_norm": nn.RMSNorm(6, 1e-3, elementwise_affine=False),
        "layer_norm": nn.LayerNorm(6, elementwise_affine=False),
        "group_norm": nn.GroupNorm(2, 6, affine=False),
    }[kind]
    setting = {"rms_norm": ", eps: 0.001", "layer_norm": "", "group_norm": ", groups: 2"}[kind]
    module, text = randomise(Normed(made)).double(), normed(f"op: {kind}{setting}")
    names = widths(tmp_path, text, module)
    several = {"width": [name for name, size in names.items() if size == 2]} if kind == "group_norm" else {"layer": "a"}
    done = edit(tmp_path, text, module, "split", every=True, **several)
    assert done.distance(inputs(9, 4)) < EXACT
    if kind != "group_norm":
        with pytest.raises(Refused, match="no gain"):
            edit(tmp_path / "expand", text, module, "expand", layer="a", add=1)


class Halves(nn.Module):
    """One layer makes two widths of one size, of which a norm sees one; and two norms."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(4, 12), nn.LayerNorm(6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.other = nn.RMSNorm(6, 1e-3) if norms == 2 else nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.a(x).chunk(2, 1)
        return self.b(self.norm(one)) + self.c(self.other(two))


@pytest.mark.parametrize("norms", (1, 2))
def test_widths_of_one_tensor_grow_each_in_its_way(tmp_path: Path, norms: int) -> None:
    text = spec_of(
        "x: [batch, 4]",
        "s",
        a="op: linear, from: x",
        h="op: chunk, from: a, chunks: 2",
        norm='op: layer_norm, from: "h[0]"',
        other='op: rms_norm, eps: 0.001, from: "h[1]"' if norms == 2 else 'op: tanh, from: "h[1]"',
        b="op: linear, from: norm",
        c="op: linear, from: other",
        s="op: add, from: [b, c]",
    )
    done = edit(tmp_path, text, randomise(Halves(norms)).double(), "expand", width="a[0:6]", add=2)
    assert done.new["a.weight"].shape == (16, 4)
    assert done.distance(inputs(9, 4)) < EXACT
    # Rows 6, 7: the mean; rows 14, 15: zero for rms_norm, random otherwise.
    torch.testing.assert_close(done.new["a.weight"][6], done.old["a.weight"][:6].mean(0))
    assert bool(done.new["a.weight"][14:].any()) is (norms == 1)


def widths(folder: Path, text: str, module: nn.Module) -> dict[str, int]:
    from netgrow_cli.jobs.job import Options, opened

    with opened(save(folder / "look", text, module.state_dict()), Options()) as job:
        return {info.name: info.size for info in job.topology.widths.values() if info.frozen is None}


def test_group_norm_takes_whole_groups_only(tmp_path: Path) -> None:
    module, text = randomise(Normed(nn.GroupNorm(2, 6))).double(), normed("op: group_norm, groups: 2")
    names = widths(tmp_path, text, module)
    groups = next(name for name, size in names.items() if size == 2)
    channels = next(name for name, size in names.items() if size == 3)
    done = edit(tmp_path, text, module, "expand", width=groups, add=2)
    assert done.after.norm.num_groups == 4
    assert done.new["a.weight"].shape == (12, 4)
    assert done.distance(inputs(9, 4)) < EXACT
    with pytest.raises(Refused, match="whole new groups"):
        edit(tmp_path / "c", text, module, "expand", width=channels, add=1)
    # One group copied is exact as well.
    assert edit(tmp_path / "s", text, module, "split", width=groups, units=[1]).distance(inputs(9, 4)) < EXACT


class Whole(nn.Module):
    def __init__(self, op: str) -> None:
        super().__init__()
        self.a, self.b, self.op = nn.Linear(4, 6), nn.Linear(1 if op in ("sum", "mean", "amax") else 6, 3), op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.op == "softmax":
            return self.b(y.softmax(1))
        if self.op == "normalize":
            return self.b(nn.functional.normalize(y))
        return self.b(getattr(torch, self.op)(y, 1, keepdim=True))


@pytest.mark.parametrize("op", ("softmax", "sum", "mean", "amax", "normalize"))
def test_what_sees_all_units(tmp_path: Path, op: str) -> None:
    settings = {"softmax": "axis: 1", "normalize": "axis: 1"}.get(op, "axes: 1, keepdim: true")
    text = spec_of(
        "x: [batch, 4]", "b", a="op: linear, from: x", w=f"op: {op}, from: a, {settings}", b="op: linear, from: w"
    )
    module = randomise(Whole(op)).double()

    def outcome(command: str, **more: Any) -> str:
        try:
            done = edit(tmp_path / f"{command}{len(more)}", text, module, command, layer="a", **more)
        except Refused:
            return "refused"
        assert done.distance(inputs(9, 4)) < EXACT
        return "exact"

    expected = {
        "softmax": ("refused", "refused", "refused"),
        "sum": ("refused", "refused", "refused"),
        "mean": ("refused", "refused", "exact"),
        "amax": ("refused", "exact", "exact"),
        "normalize": ("exact", "refused", "refused"),
    }
    found = (outcome("expand", add=2), outcome("split", units=[1]), outcome("split", every=True, ways=2))
    assert found == expected[op]


# -- what new units learn --------------------------------------------------------------------------------


def gradients(module: nn.Module, name: str, steps: int) -> list[torch.Tensor]:
    module = copy.deepcopy(module)
    found = []
    for step in range(steps):
        x = inputs(64, 4, seed=step)
        module.zero_grad()
        (module(x) - inputs(64, 3, seed=100 + step)).square().mean().backward()
        parameter = dict(module.named_parameters())[name]
        found.append(parameter.grad.clone())
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.1 * p.grad
    return found


def test_expanded_units_learn_from_the_second_step(tmp_path: Path) -> None:
    done = edit(tmp_path, MLP, randomise(Mlp(torch.tanh)).double(), "expand", layer="a", add=4)
    first, second = gradients(done.after, "a.weight", 2)
    assert not bool(first[6:].any())
    assert bool(second[6:].any(1).all())
    assert not bool(done.new["b.weight"][:, 6:].any())


def test_antisymmetric_pairs_are_exact_and_learn_at_once(tmp_path: Path) -> None:
    module = randomise(Mlp()).double()
    done = edit(tmp_path, MLP, module, "expand", layer="a", add=5, init="antisymmetric", check_learnable=True)
    assert done.distance(inputs(9, 4)) < EXACT
    rows, columns = done.new["a.weight"], done.new["b.weight"]
    assert torch.equal(rows[6], rows[7]) and torch.equal(columns[:, 6], -columns[:, 7])
    assert torch.equal(rows[8], rows[9]) and bool(columns[:, 8].any())
    assert not bool(columns[:, 10].any())
    (first,) = gradients(done.after, "a.weight", 1)
    assert bool(first[6:10].any(1).all())
    assert done.report.learnable is not None and done.report.learnable.good


@pytest.mark.parametrize(("noise", "good"), ((0.0, False), (0.2, True)))
def test_equal_halves_stay_twins_and_are_reported(tmp_path: Path, noise: float, good: bool) -> None:
    text = MLP.replace("relu", "tanh")
    module = randomise(Mlp(torch.tanh)).double()
    done = edit(tmp_path, text, module, "split", layer="a", units=[0, 3], noise=noise, check_learnable=True)
    found = done.report.learnable
    assert found is not None and found.good is good
    assert len(found.twins) == (0 if good else 2)
    last = gradients(done.after, "a.weight", 3)[-1]
    assert torch.allclose(last[0], last[6], rtol=1e-9, atol=1e-15) is not good
    assert any("twins" in warning for warning in done.report.warnings) is not good


# -- merging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float64, *LOW), ids=str)
@pytest.mark.parametrize("noise", (0.0, 0.2))
def test_splitting_and_merging_gives_the_tensors_back(tmp_path: Path, noise: float, dtype: torch.dtype) -> None:
    module = randomise(Mlp()).to(dtype)
    there = edit(tmp_path, MLP, module, "split", layer="a", units=[1, 4], noise=noise)
    report = netgrow_cli.prune(there.path, layer="a", duplicates=True, output=tmp_path / "back.pt", probes=64)
    back = torch.load(report.output, weights_only=True)
    assert {name: (t.shape, t.dtype) for name, t in back.items()} == {
        name: (t.shape, t.dtype) for name, t in there.old.items()
    }
    assert all(torch.equal(back[name], tensor) for name, tensor in there.old.items())


# -- folding ---------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    def __init__(self, padding: int, mode: str, bias: bool, norm: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 1)
        self.b = nn.Conv2d(4, 3, 3, padding=padding, padding_mode=mode, bias=bias)
        self.n = nn.BatchNorm2d(3) if norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x).sigmoid())
        return y if self.n is None else self.n(y)


def constant_unit(module: nn.Module, unit: int = 1) -> nn.Module:
    with torch.no_grad():
        module.a.weight[unit] = 0
    return module


@pytest.mark.parametrize(
    ("padding", "mode", "bias", "norm", "exact"),
    (
        (0, "zeros", True, False, True),
        (0, "zeros", True, True, True),
        (1, "zeros", True, False, False),
        (1, "reflect", True, False, True),
        (1, "circular", True, False, True),
        (1, "replicate", False, True, True),
        (0, "zeros", False, True, True),
        (1, "zeros", False, True, False),
        (0, "zeros", False, False, False),
    ),
)
def test_constants_fold_where_that_is_exact(
    tmp_path: Path, padding: int, mode: str, bias: bool, norm: bool, exact: bool
) -> None:
    layers = {
        "a": "op: conv2d, from: x",
        "g": "op: sigmoid, from: a",
        "b": f"op: conv2d, from: g, padding: {padding}, padding_mode: {mode}",
        **({"n": "op: batch_norm, from: b"} if norm else {}),
    }
    text = spec_of("x: [batch, 2, 5, 5]", "n" if norm else "b", **layers)
    module = constant_unit(randomise(Conv(padding, mode, bias, norm)).double())
    if not exact:
        with pytest.raises(NotEquivalent):
            edit(tmp_path, text, module, "prune", layer="a", dead=True)
        assert not (tmp_path / "prune.pt").exists()
        return
    done = edit(tmp_path, text, module, "prune", layer="a", dead=True)
    assert done.new["a.weight"].shape == (3, 2, 1, 1)
    assert done.distance(inputs(9, 2, 5, 5)) < EXACT
    changed = "b.bias" if bias else "n.running_mean"
    assert not torch.equal(done.new[changed], done.old[changed])


def test_a_constant_folds_into_a_linear_layer(tmp_path: Path) -> None:
    module = constant_unit(randomise(Mlp(torch.sigmoid)).double())
    done = edit(tmp_path, MLP.replace("relu", "sigmoid"), module, "prune", layer="a", dead=True)
    constant = module.a.bias[1].detach().sigmoid()
    torch.testing.assert_close(done.new["b.bias"], done.old["b.bias"] + constant * done.old["b.weight"][:, 1])
    assert done.distance(inputs(9, 4)) < EXACT


def test_a_constant_of_a_layer_used_twice(tmp_path: Path) -> None:
    """One bias cannot take in two constants."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu()) + self.b(self.a(x).sigmoid())

    text = spec_of(
        "x: [batch, 4]",
        "s",
        a="op: linear, from: x",
        r="op: relu, from: a",
        g="op: sigmoid, from: a",
        b="op: linear, from: r",
        c="op: linear, from: g, params: {weight: b.weight, bias: b.bias}",
        s="op: add, from: [b, c]",
    )
    module = constant_unit(randomise(Twice()).double())
    with torch.no_grad():
        module.a.bias[1] = -1.0
    with pytest.raises(NotEquivalent):
        edit(tmp_path, text, module, "prune", layer="a", dead=True)


def test_recycling_overwrites_what_the_dead_unit_passed_on(tmp_path: Path) -> None:
    module = constant_unit(randomise(Mlp()).double(), 2)
    with torch.no_grad():
        module.a.bias[2] = -1.0
        module.b.weight[:, 2] = 1000.0
    done = edit(tmp_path, MLP, module, "recycle", layer="a")
    assert done.distance(inputs(9, 4)) < EXACT
    assert float(done.new["b.weight"].abs().max()) < 100
    ((live, copies),) = ((old, new) for change in done.report.plan.changes for old, new in change.copies.items())
    assert 2 in copies
    assert torch.equal(done.new["a.weight"][2], done.old["a.weight"][live])
    columns = done.new["b.weight"]
    assert torch.equal(columns[:, copies[0]] + columns[:, copies[1]], done.old["b.weight"][:, live])


# -- bytes, ties, dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", (".pt", ".safetensors"))
def test_a_seed_is_the_bytes(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path, MLP, randomise(Mlp()).state_dict(), f"net{suffix}")
    made = []
    for count, seed in enumerate((4, 4, 5)):
        out = tmp_path / str(count) / f"out{suffix}"
        out.parent.mkdir()
        netgrow_cli.expand(path, layer="a", add=3, seed=seed, output=out, probes=16)
        made.append(out.read_bytes())
    assert made[0] == made[1] != made[2]


class Tied(nn.Module):
    """An embedding whose table is the last layer's weight, behind a norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(7, 4), norm, nn.Linear(4, 7, bias=False)
        self.mix = nn.Linear(4, 4)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.table(x)
        return self.head(self.norm(y + self.mix(y)))


TIED = """
netgrow: 1
inputs: {x: {shape: [batch, 3], dtype: int64, high: 7}}
layers:
  table: {op: embedding, from: x}
  mix: {op: linear, from: table}
  s: {op: add, from: [table, mix]}
  norm: {op: NORM, from: s}
  head: {op: linear, from: norm}
outputs: [head]
"""


@pytest.mark.parametrize("kind", ("rms_norm", "layer_norm"))
def test_tied_tensors_stay_tied(tmp_path: Path, kind: str) -> None:
    module = randomise(Tied(nn.RMSNorm(4, 1e-6) if kind == "rms_norm" else nn.LayerNorm(4))).double()
    text = TIED.replace("NORM", kind)
    tokens = torch.randint(7, (9, 3), generator=torch.Generator().manual_seed(1))
    with pytest.raises(Refused, match="tied"):
        edit(tmp_path / "split", text, module, "split", layer="table", every=True)
    done = edit(tmp_path, text, module, "expand", layer="table", add=2)
    assert done.distance(tokens) < EXACT
    assert done.after.head.weight is done.after.table.weight
    assert done.new["head.weight"].data_ptr() == done.new["table.weight"].data_ptr()


def test_a_tied_head_before_the_norm_cannot_have_units_of_the_mean(tmp_path: Path) -> None:
    text = TIED.replace("NORM", "layer_norm").replace(
        "outputs: [head]", "  raw: {op: linear, from: s, params: {weight: head.weight}}\noutputs: [head, raw]"
    )
    module = randomise(Tied(nn.LayerNorm(4))).double()
    with pytest.raises(Refused, match="tied"):
        edit(tmp_path, text, module, "expand", layer="table", add=2)


@pytest.mark.parametrize("dtype", (torch.int8, torch.int64, torch.uint8, torch.float8_e4m3fn), ids=str)
def test_numbers_that_cannot_be_shared_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = dict(randomise(Mlp()).state_dict())
    state["b.weight"] = (10 * state["b.weight"]).to(dtype)
    path = save(tmp_path, MLP, state)
    with pytest.raises(Refused, match=r"b\.weight"):
        netgrow_cli.split(path, layer="a", units=[0], output=tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    state = dict(randomise(Mlp()).state_dict())
    state["b.weight"] = torch.quantize_per_tensor(state["b.weight"].float(), 0.1, 0, torch.qint8)
    path = save(tmp_path, MLP, state)
    with pytest.raises(netgrow_cli.NetgrowError):
        netgrow_cli.expand(path, layer="a", add=1, output=tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_every_change_keeps_what_it_does_not_touch(tmp_path: Path) -> None:
    done: Edit = edit(tmp_path, MLP, randomise(Mlp()), "expand", layer="a", add=2)
    assert torch.equal(done.new["a.weight"][:6], done.old["a.weight"])
    assert torch.equal(done.new["b.weight"][:, :6], done.old["b.weight"])
    assert torch.equal(done.new["b.bias"], done.old["b.bias"])
