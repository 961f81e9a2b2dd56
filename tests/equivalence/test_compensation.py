"""prune --compensate: what dropped units gave, made up for by those that stay."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import netgrow_cli
from netgrow_cli import NotEquivalent, UsageError
from netgrow_cli.proof.probes import Probes
from netgrow_cli.surgery.least_squares import Moments, Solution
from netgrow_cli.topology.graph import Graph, Input
from tests.cli.driver import call
from tests.equivalence import test_attention_exact as attention
from tests.equivalence.edits import Edit, edit, inputs, randomise, save, spec_of

EXACT = 1e-12


# -- least squares -------------------------------------------------------------------------------------


def fitted(features: torch.Tensor, left: torch.Tensor, intercept: bool = True, batches: int = 7) -> Solution:
    """One group's moments, batch by batch."""
    moments = Moments(intercept)
    for z, r in zip(features.tensor_split(batches), left.tensor_split(batches), strict=True):
        moments.add(z.unsqueeze(1), r.unsqueeze(1))
    assert moments.samples == len(features)
    return moments.solved()


def misses(solution: Solution, features: torch.Tensor, left: torch.Tensor) -> float:
    """How far the prediction is off, relative to what is predicted."""
    given = features @ solution.weight[0].T + solution.constant[0]
    return float((given - left).abs().max() / left.abs().max())


@pytest.mark.parametrize("intercept", (True, False))
@pytest.mark.parametrize("shift", (0.0, 1e4))
def test_moments_give_what_lstsq_gives(intercept: bool, shift: float) -> None:
    z, noise = inputs(400, 9) + shift, inputs(400, 3, seed=1)
    r = z @ inputs(9, 3, seed=2) + (5.0 if intercept else 0.0) + 0.01 * noise
    found = fitted(z, r, intercept)
    columns = torch.cat([z, torch.ones(400, 1, dtype=z.dtype)], 1) if intercept else z
    wanted = columns @ torch.linalg.lstsq(columns, r, driver="gelsd").solution
    given = z @ found.weight[0].T + found.constant[0]
    assert float((given - wanted).abs().max()) < 1e-4 * float(noise.abs().max())
    assert intercept or not found.constant.any()


@pytest.mark.parametrize("sizes", ((1.0, 1e-6), (1e5, 1e-5), (1e-100, 1e-105)), ids=str)
def test_features_of_any_size_are_fitted(sizes: tuple[float, float]) -> None:
    scale = torch.tensor([sizes[0]] * 4 + [sizes[1]] * 4, dtype=torch.float64)
    z, weight = inputs(300, 8), inputs(8, 2, seed=1)
    r = z @ weight + 3.0
    assert misses(fitted(z * scale, r), z * scale, r) < 1e-11


def test_duplicates_constants_and_zeros_among_the_features() -> None:
    z = inputs(300, 5)
    still = torch.full((300, 1), 1e3, dtype=torch.float64)
    r = z @ inputs(5, 2, seed=1) + 7.0
    features = torch.cat([z, z, z[:, :2] * 3.0 - z[:, 2:4], still, still * 0.0], 1)
    found = fitted(features, r)
    assert misses(found, features, r) < EXACT
    assert not found.weight[0, :, -2:].any(), "a constant says nothing"
    assert float(found.weight.abs().max()) < 10.0, "what is not determined stays small"


def test_ill_conditioned_features_do_not_blow_up() -> None:
    base = inputs(500, 1)
    z = base + 1e-7 * inputs(500, 6, seed=1)  # six features that are nearly one
    r = base @ torch.ones(1, 2, dtype=torch.float64) + 0.1 * inputs(500, 2, seed=2)
    found = fitted(z, r)
    assert float(found.weight.abs().max()) < 1e2, "noise was taken for a difference of 1e-7"
    assert abs(found.explained - 1.0 / 1.01) < 0.01


def test_few_samples_are_not_overfitted() -> None:
    """As many samples as features and much noise: the ridge does better on new samples than doing nothing."""
    weight = torch.zeros(40, 3, dtype=torch.float64)
    weight[:4] = 1.0
    z, new = inputs(45, 40), inputs(2000, 40, seed=5)
    r = z @ weight + 2.0 * inputs(45, 3, seed=6)
    found = fitted(z, r)
    plain = torch.linalg.lstsq(z, r).solution
    off = float(((new @ found.weight[0].T + found.constant[0] - new @ weight) ** 2).mean())
    assert found.ridge[0] > 0.0
    assert off < 0.25 * float(((new @ plain - new @ weight) ** 2).mean())
    assert off < float(((new @ weight) ** 2).mean())


def test_nothing_to_fit() -> None:
    found = fitted(torch.zeros(20, 3, dtype=torch.float64), torch.full((20, 2), 5.0, dtype=torch.float64))
    assert not found.weight.any()
    assert torch.equal(found.constant[0], torch.full((2,), 5.0, dtype=torch.float64))


# -- exact recovery: what is dropped is a combination of what stays ----------------------------------------


class Net(nn.Module):
    """Layers by name, and a function that runs them."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._run = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(self, x)


def again(layer: nn.Module, unit: int, source: int, factor: float = 2.0) -> None:
    """A unit that is a multiple of another, behind a ReLU too."""
    with torch.no_grad():
        layer.weight[unit] = factor * layer.weight[source]
        if layer.bias is not None:
            layer.bias[unit] = factor * layer.bias[source]


def image(channels: int, *layers: str, size: str = "6, 6") -> str:
    """The text of a spec with an image as its input."""
    lines = [f"netgrow: 1\ninputs: {{x: [batch, {channels}, {size}]}}\nlayers:"]
    return "\n".join([*lines, *(f"  {layer}" for layer in layers[:-1]), f"outputs: [{layers[-1]}]", ""])


def chain(
    name: str, reader: nn.Module, channels: int = 6, size: str = "6, 6", **settings: Any
) -> tuple[str, nn.Module]:
    """A convolution and a ReLU, read by another convolution."""
    dims = int(name[4])
    first = getattr(nn, f"Conv{dims}d")(2, channels, 3)
    given = "".join(f", {key}: {value}" for key, value in settings.items())
    text = image(
        2,
        f"a: {{op: {name}, from: x}}",
        "r: {op: relu, from: a}",
        f"b: {{op: {name}, from: r{given}}}",
        "b",
        size=size,
    )
    return text, Net(lambda net, x: net.b(torch.relu(net.a(x))), a=first, b=reader)


def linears(bias: bool = True) -> tuple[str, nn.Module]:
    text = spec_of("x: [batch, 4]", "b", a="op: linear, from: x", r="op: relu, from: a", b="op: linear, from: r")
    return text, Net(lambda net, x: net.b(torch.relu(net.a(x))), a=nn.Linear(4, 8), b=nn.Linear(8, 3, bias))


def flattened() -> tuple[str, nn.Module]:
    text = image(
        2, "a: {op: conv2d, from: x}", "r: {op: relu, from: a}", "f: {op: flatten, from: r}",
        "b: {op: linear, from: f}", "b", size="4, 4",
    )  # fmt: skip
    net = Net(lambda net, x: net.b(torch.relu(net.a(x)).flatten(1)), a=nn.Conv2d(2, 5, 3), b=nn.Linear(20, 3))
    return text, net


def concatenated() -> tuple[str, nn.Module]:
    text = spec_of(
        "x: [batch, 4]", "b", a="op: linear, from: x", c="op: linear, from: x", r="op: relu, from: a",
        s="op: tanh, from: c", j="op: cat, from: [s, r]", b="op: linear, from: j",
    )  # fmt: skip
    net = Net(
        lambda net, x: net.b(torch.cat([torch.tanh(net.c(x)), torch.relu(net.a(x))], 1)),
        a=nn.Linear(4, 6), c=nn.Linear(4, 3), b=nn.Linear(9, 3),
    )  # fmt: skip
    return text, net


def residual() -> tuple[str, nn.Module]:
    """Two readers of one stream, of which one writes to it."""
    text = spec_of(
        "x: [batch, 4]", "b", a="op: linear, from: x", r="op: relu, from: a", c="op: linear, from: r",
        t="op: relu, from: c", s="op: add, from: [r, t]", b="op: linear, from: s",
    )  # fmt: skip

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        stream = torch.relu(net.a(x))
        return net.b(stream + torch.relu(net.c(stream)))

    return text, Net(run, a=nn.Linear(4, 8), c=nn.Linear(8, 8), b=nn.Linear(8, 3))


def normalised() -> tuple[str, nn.Module]:
    """A reader without a bias, and a batch_norm that takes the constant. The constant is one: no ReLU in between."""
    text = image(
        2, "a: {op: conv2d, from: x}", "b: {op: conv2d, from: a}", "n: {op: batch_norm, from: b}", "n"
    )  # fmt: skip
    net = Net(
        lambda net, x: net.n(net.b(net.a(x))),
        a=nn.Conv2d(2, 6, 3), b=nn.Conv2d(6, 4, 3, bias=False), n=nn.BatchNorm2d(4),
    )  # fmt: skip
    return text, net


def recurrent(op: str, layer: nn.Module) -> tuple[str, nn.Module]:
    text = spec_of(
        "x: [batch, time, 4]", "o", a="op: linear, from: x", r="op: relu, from: a",
        b=f"op: {op}, from: r, batch_first: true", o="op: linear, from: b",
    )  # fmt: skip
    net = Net(lambda net, x: net.o(net.b(torch.relu(net.a(x)))[0]), a=nn.Linear(4, 8), b=layer, o=nn.Linear(10, 3))
    return text, net


def conv1d_io() -> tuple[str, nn.Module]:
    """A weight as (in, out)."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(8, 3)), nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight + self.bias

    text = spec_of("x: [batch, 4]", "b", a="op: linear, from: x", r="op: relu, from: a", b="op: linear_io, from: r")
    return text, Net(lambda net, x: net.b(torch.relu(net.a(x))), a=nn.Linear(4, 8), b=Turned())


CASES: dict[str, tuple[str, nn.Module, list[int], tuple[int, ...]]] = {
    "linear": (*linears(), [4], (4,)),
    "no bias": (*linears(bias=False), [4], (4,)),
    "transposed": (*conv1d_io(), [4], (4,)),
    "padding": (*chain("conv2d", nn.Conv2d(6, 4, 3, padding=1), padding=1), [4], (2, 6, 6)),
    "stride": (*chain("conv2d", nn.Conv2d(6, 4, 3, 2, (2, 1)), stride=2, padding=[2, 1]), [4], (2, 6, 6)),
    "dilation": (*chain("conv2d", nn.Conv2d(6, 4, 2, dilation=3), dilation=3), [4], (2, 6, 6)),
    "reflect": (
        *chain("conv2d", nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), padding=1, padding_mode="reflect"),
        [4],
        (2, 6, 6),
    ),
    "same": (*chain("conv2d", nn.Conv2d(6, 4, (3, 5), padding="same"), padding="same"), [4], (2, 6, 6)),
    "groups": (*chain("conv2d", nn.Conv2d(8, 4, 3, padding=1, groups=2), channels=8, padding=1), [3, 7], (2, 6, 6)),
    "conv1d": (*chain("conv1d", nn.Conv1d(6, 4, 3, padding=2), size="9", padding=2), [4], (2, 9)),
    "conv3d": (*chain("conv3d", nn.Conv3d(6, 4, 2, padding=1), size="4, 5, 4", padding=1), [4], (2, 4, 5, 4)),
    "flatten": (*flattened(), [4], (2, 4, 4)),
    "concatenation": (*concatenated(), [4], (4,)),
    "batch_norm": (*normalised(), [4], (2, 6, 6)),
    "lstm": (*recurrent("lstm", nn.LSTM(8, 5, batch_first=True, bidirectional=True)), [4], (5, 4)),
    "gru": (*recurrent("gru", nn.GRU(8, 10, 2, batch_first=True, bias=False)), [4], (5, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_others_can_say_is_not_lost(tmp_path: Path, name: str) -> None:
    text, net, units, shape = CASES[name]
    net = randomise(copy.deepcopy(net).double())
    for unit in units:
        again(net.a, unit, unit - 1)
    chosen: dict[str, Any] = {"layer": "a", "units": units, "probes": 512}
    if name == "groups":  # one channel of each group
        chosen = {"width": "a.channels", "units": units[:1], "probes": 512}
    with pytest.raises(NotEquivalent):
        edit(tmp_path / "plain", text, net, "prune", **chosen)
    done = edit(tmp_path, text, net, "prune", compensate=True, **chosen)
    assert done.distance(inputs(64, *shape)) < EXACT
    found = done.report.compensation
    assert found.after.max_rel < EXACT < 1e-3 < found.before.max_rel
    assert found.after.rms_rel < EXACT
    assert not found.left
    assert done.report.folded is not None and not done.report.folded.differing


def test_an_affine_combination_needs_the_constant(tmp_path: Path) -> None:
    """2 a - 3 b + 5, with nothing between: into the bias, or the mean of the norm behind."""
    for name, (text, net, shape) in {
        "bias": (
            spec_of("x: [batch, 4]", "b", a="op: linear, from: x", b="op: linear, from: a"),
            Net(lambda net, x: net.b(net.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 3)),
            (4,),
        ),
        "norm": (*normalised(), (2, 6, 6)),
    }.items():
        net = randomise(net.double())
        with torch.no_grad():
            for tensor, constant in ((net.a.weight, 0.0), (net.a.bias, 5.0)):
                tensor[2] = 2.0 * tensor[0] - 3.0 * tensor[1] + constant
        done = edit(tmp_path / name, text, net, "prune", layer="a", units=[2], compensate=True, probes=512)
        assert done.distance(inputs(64, *shape)) < EXACT
        (refit,) = done.report.compensation.readers
        assert refit.tensors == ("b.weight", "b.bias" if name == "bias" else "n.running_mean")
        assert refit.explained > 1.0 - 1e-12


def test_both_readers_of_a_stream(tmp_path: Path) -> None:
    text, net = residual()
    net = randomise(net.double())
    again(net.a, 5, 2)
    again(net.c, 5, 2)  # (so that the sum of both is twice that of unit 2)
    done = edit(tmp_path, text, net, "prune", layer="a", units=[5], compensate=True, probes=512)
    assert done.distance(inputs(64, 4)) < EXACT
    assert [refit.layer for refit in done.report.compensation.readers] == ["c", "b"]


def test_several_widths_at_once(tmp_path: Path) -> None:
    text = spec_of(
        "x: [batch, 4]", "c", a="op: linear, from: x", r="op: relu, from: a", b="op: linear, from: r",
        s="op: relu, from: b", c="op: linear, from: s",
    )  # fmt: skip
    net = Net(
        lambda net, x: net.c(torch.relu(net.b(torch.relu(net.a(x))))),
        a=nn.Linear(4, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3),
    )  # fmt: skip
    net = randomise(net.double())
    again(net.a, 5, 2)
    again(net.b, 5, 2)
    done = edit(tmp_path, text, net, "prune", layer=["a", "b"], units=[5], compensate=True, probes=512)
    assert done.distance(inputs(64, 4)) < EXACT


def test_dead_units_are_folded_once(tmp_path: Path) -> None:
    """A constant unit beside a live one that goes: its value is in the bias once."""
    text, net = linears()
    net = randomise(net.double())
    with torch.no_grad():
        text = text.replace("op: relu", "op: sigmoid")
        net._run = lambda net, x: net.b(torch.sigmoid(net.a(x)))
        net.a.weight[0], net.a.bias[0] = 0.0, 1.0
        net.a.weight[6], net.a.bias[6] = net.a.weight[7], net.a.bias[7]
    done = edit(tmp_path, text, net, "prune", layer="a", units=[0, 6], compensate=True, probes=512)
    assert done.distance(inputs(64, 4)) < EXACT
    # The constant alone needs no fit, and nothing is fitted.
    done = edit(tmp_path / "dead", text, net, "prune", layer="a", units=[0], compensate=True, probes=512)
    assert not done.report.compensation.readers
    assert "loses nothing" in done.report.compensation.left[0].why
    assert torch.equal(done.new["b.weight"], done.old["b.weight"][:, 1:])
    assert done.distance(inputs(64, 4)) < EXACT


def test_values_of_attention(tmp_path: Path) -> None:
    """One dimension of all heads' values; o reads them behind the heads."""
    net = randomise(attention.Attention().double())
    for head in range(4):
        again(net.v, 5 * head + 4, 5 * head + 3)
    text = attention.spec("default")
    values = attention.width(tmp_path, text, net, 5, "v")
    done = edit(tmp_path, text, net, "prune", width=values, units=[4], compensate=True, probes=512)
    assert done.distance(inputs(64, attention.TIME, 6)) < EXACT
    assert [refit.layer for refit in done.report.compensation.readers] == ["o"]
    # What queries and keys are summed over, no layer reads: what is lost there stays lost, and the report says where.
    keys = attention.width(tmp_path, text, net, 3)
    done = edit(tmp_path / "keys", text, net, "prune", width=keys, units=[1], compensate=True, allow_drift=99.0)
    assert not done.report.compensation.readers
    assert [one.layer for one in done.report.compensation.left] == ["mix"]


# -- what is only nearly made up for -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ("linear", "padding", "residual"))
def test_drift_goes_down_on_rows_that_were_not_fitted(tmp_path: Path, seed: int, kind: str) -> None:
    """Correlated features: wide layers on few inputs."""
    text, net = {"linear": linears(), "padding": CASES["padding"][:2], "residual": residual()}[kind]
    net = randomise(copy.deepcopy(net).double(), seed)
    done = edit(tmp_path, text, net, "prune", layer="a", fraction=0.4, compensate=True, probes=1024, allow_drift=9.0)
    found = done.report.compensation
    assert found.after.rms_rel < found.before.rms_rel
    plain = edit(tmp_path / "plain", text, net, "prune", layer="a", fraction=0.4, probes=1024, allow_drift=9.0)
    x = inputs(500, *((2, 6, 6) if kind == "padding" else (4,)), seed=seed)
    assert rms(done, x) < rms(plain, x)


def rms(done: Edit, x: torch.Tensor) -> float:
    """The root mean square of the drift on other inputs, in the real modules."""
    with torch.no_grad():
        one, other = done.before(x), done.after(x)
    return float(((one - other) ** 2).mean().sqrt() / (one**2).mean().sqrt())


def data(folder: Path, rows: int, seed: int = 3) -> Path:
    path = folder / f"data{rows}.npy"
    np.save(path, inputs(rows, 4, seed=seed).numpy())
    return path


def saved(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, nn.Module]:
    text, net = linears()
    net = randomise(net.double()).to(dtype)
    return save(folder, text, net.state_dict(), "net.safetensors"), net


def test_data_is_partly_held_out(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    report = netgrow_cli.prune(
        path, layer="a", lowest=3, compensate=True, probe_data=data(tmp_path, 300), allow_drift=9.0
    )
    found = report.compensation
    assert (found.rows, found.judged, found.origin) == (240, 60, "data300.npy")
    assert report.equivalence.probes == 60, "the proof runs on what was not fitted on"
    assert report.equivalence.max_rel == pytest.approx(found.after.max_rel, rel=1e-6)


def test_too_few_rows(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    settings: dict[str, Any] = {"layer": "a", "lowest": 2, "compensate": True, "allow_drift": 9.0, "force": True}
    report = netgrow_cli.prune(path, probe_data=data(tmp_path, 12), **settings)
    assert any("fewer than 2 samples" in line for line in report.warnings)
    report = netgrow_cli.prune(path, probe_data=data(tmp_path, 7), **settings)
    assert not report.compensation.readers
    assert "6 samples are too few for 6 features" in report.compensation.left[0].why
    with pytest.raises(UsageError, match="too few"):
        netgrow_cli.prune(path, probe_data=data(tmp_path, 4), **settings)


def test_a_fit_that_does_not_hold_elsewhere_is_called_so(tmp_path: Path) -> None:
    """Rows that are held out are of another kind than the rest."""
    path, _ = saved(tmp_path)
    rows = inputs(400, 4)
    rows[4::5] *= -40.0
    np.save(tmp_path / "odd.npy", rows.numpy())
    report = netgrow_cli.prune(
        path, layer="a", lowest=4, compensate=True, probe_data=tmp_path / "odd.npy", allow_drift=99.0
    )
    worse = report.compensation.after.rms_rel > report.compensation.before.rms_rel
    assert worse == any("made the drift" in line and "mean-square" in line for line in report.warnings)
    assert worse


def test_readers_that_stay_are_named(tmp_path: Path) -> None:
    text = spec_of(
        "x: [batch, 4]", "b, t", a="op: linear, from: x", n="op: layer_norm, from: a", b="op: linear, from: n",
        c="op: linear, from: a, params: {weight: shared}", t="op: linear, from: a, params: {weight: shared}",
    )  # fmt: skip
    state = {"a.weight": inputs(6, 4), "a.bias": inputs(6), "n.weight": inputs(6), "n.bias": inputs(6)}
    state.update({"b.weight": inputs(3, 6), "b.bias": inputs(3), "shared": inputs(2, 6)})
    path = save(tmp_path, text, state)
    report = netgrow_cli.prune(path, layer="a", lowest=1, compensate=True, probes=256, allow_drift=99.0)
    left = {one.layer: one.why for one in report.compensation.left}
    assert list(left) == ["n", "c", "t"]
    assert "at once" in left["n"] and "that of t too" in left["c"]
    assert [refit.layer for refit in report.compensation.readers] == ["b"]


def test_a_recurrent_layer_that_reads_itself(tmp_path: Path) -> None:
    text, net = recurrent("gru", nn.GRU(8, 10, batch_first=True))
    net = randomise(net.double())
    done = edit(tmp_path, text, net, "prune", layer="b", lowest=2, compensate=True, probes=256, allow_drift=9.0)
    assert [refit.layer for refit in done.report.compensation.readers] == ["o"]
    assert [one.layer for one in done.report.compensation.left] == ["b"]


# -- files, records, the command line ---------------------------------------------------------------------------


def test_state_that_trains_on(tmp_path: Path) -> None:
    """Adam's moments go along; an average is refitted to what it gave itself."""
    text, net = linears()
    net = randomise(net.double())
    average = randomise(copy.deepcopy(net), seed=1)
    for each in (net, average):
        again(each.a, 5, 2, 3.0)
    optimizer = torch.optim.Adam(net.named_parameters(), lr=0.0)
    net(inputs(9, 4)).pow(2).sum().backward()
    optimizer.step()
    state = {"model": net.state_dict(), "ema": average.state_dict(), "optimizer": optimizer.state_dict()}
    path = save(tmp_path, text, state)
    report = netgrow_cli.prune(path, layer="a", units=[5], compensate=True, probes=512)
    written = torch.load(report.output, weights_only=True)
    x, small = inputs(64, 4), copy.deepcopy(net)
    small.a, small.b = nn.Linear(4, 7).double(), nn.Linear(7, 3).double()
    for key, old in (("model", net), ("ema", average)):
        small.load_state_dict(written[key])
        assert float((small(x) - old(x)).detach().abs().max()) < 1e-11
    kept = [0, 1, 2, 3, 4, 6, 7]
    moments, before = written["optimizer"]["state"], state["optimizer"]["state"]
    names = written["optimizer"]["param_groups"][0]["param_names"]
    assert torch.equal(moments[names.index("b.weight")]["exp_avg"], before[names.index("b.weight")]["exp_avg"][:, kept])


@pytest.mark.parametrize("suffix", ("pt", "safetensors"))
def test_verify_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    text, net = linears()
    net = randomise(net.double())
    again(net.a, 5, 2)
    path = save(tmp_path, text, net.state_dict(), f"net.{suffix}")
    report = netgrow_cli.prune(path, layer="a", units=[5], compensate=True, probes=512)
    equivalence, folded = netgrow_cli.verify(path, report.output)
    assert equivalence.equal
    assert folded is not None and not folded.differing
    assert {"b.weight", "b.bias"} <= set(folded.left), "folding back cannot speak for what was refitted"
    assert call(monkeypatch, "verify", path, report.output, "--json").json["equal"]
    # What was not refitted is still compared: one other bit is found.
    damaged = dict(net.state_dict())
    damaged["a.bias"] = damaged["a.bias"] + 1e-3
    other = save(tmp_path / "other", text, damaged, f"net.{suffix}")
    assert not netgrow_cli.verify(other, report.output)[0].equal


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = saved(tmp_path)
    prune = ("prune", path, "--layer", "a", "--lowest", 3, "--compensate", "--probe-data", data(tmp_path, 300))
    result = call(monkeypatch, *prune, "--dry-run")
    assert (result.code, result.out) == (0, "")
    assert "to be refitted: b" in result.err
    result = call(monkeypatch, *prune)
    assert (result.code, result.out) == (1, "")
    assert "without --compensate they would by" in result.complaint and "--allow-drift" in result.complaint
    assert not path.with_name("net.pruned.safetensors").exists()
    found = call(monkeypatch, *prune, "--allow-drift", 5, "--json").json["compensation"]
    assert [reader["layer"] for reader in found["readers"]] == ["b"]
    assert found["readers"][0]["tensors"] == ["b.weight", "b.bias"]
    assert (found["left"], found["rows"], found["held_out"], found["origin"]) == ([], 240, 60, "data300.npy")
    assert 0.0 < found["drift_after"]["rms_rel"] < found["drift_before"]["rms_rel"]
    result = call(monkeypatch, *prune, "--allow-drift", 5, "--force")
    assert "refitted: b on 240 (data300.npy) probes" in result.err and "on 60 other probes" in result.err
    assert result.path == path.with_name("net.pruned.safetensors")
    result = call(monkeypatch, *prune, "--no-verify", "--force", "--json")
    assert result.code == 0 and "NOT VERIFIED" in result.err
    assert result.json["compensation"]["drift_after"] is None
    result = call(monkeypatch, "prune", path, "--layer", "a", "--lowest", 3, "--dry-run", "--json")
    assert result.json["compensation"] is None


def test_functions_must_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit to a network without its functions would be one to another network, proven or not."""
    torch.save(linears()[1].state_dict(), tmp_path / "net.pt")
    result = call(
        monkeypatch, "prune", tmp_path / "net.pt", "--layer", "a", "--lowest", 2, "--compensate", "--no-verify"
    )
    assert result.code == 3
    assert "--activation relu" in result.err
    assert not (tmp_path / "net.pruned.pt").exists()


def test_a_recipe_and_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = saved(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("netgrow: 1\nchanges:\n  - prune: {layer: a, lowest: 3, compensate: true}\n", encoding="utf-8")
    options = ("--probe-data", data(tmp_path, 300), "--allow-drift", 5)
    assert call(monkeypatch, "apply", recipe, path, *options, "-o", tmp_path / "one.safetensors").code == 0
    prune = ("prune", path, "--layer", "a", "--lowest", 3, "--compensate", *options)
    assert call(monkeypatch, *prune, "-o", tmp_path / "two.safetensors").code == 0
    one, two = (netgrow_cli.fit(linears()[1], tmp_path / f"{name}.safetensors").state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_low_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    """What is written is what was judged: refitted weights as they are rounded."""
    path, _ = saved(tmp_path, dtype)
    report = netgrow_cli.prune(path, layer="a", lowest=3, compensate=True, probes=512, allow_drift=9.0)
    assert report.equivalence.max_rel == pytest.approx(report.compensation.after.max_rel, rel=1e-9)
    assert report.compensation.after.rms_rel < report.compensation.before.rms_rel


def test_rows_held_out_of_batches_of_a_stated_size() -> None:
    """They stay together."""
    data = {"x": inputs(47, 3)}
    probes = Probes(Graph((Input("x", (4, 3)),), (), ()), 44, 0, data, "data")
    kept, held = (probes.held_out(5, held_out=which) for which in (False, True))
    assert torch.equal(held.data["x"], data["x"][[16, 17, 18, 19, 36, 37, 38, 39]])
    assert (kept.rows, held.rows) == (36, 8)
    rows = torch.cat([kept.data["x"], held.data["x"]])
    assert torch.equal(rows.sort(0).values, data["x"][:44].sort(0).values)


def test_patches_are_what_a_convolution_reads() -> None:
    """Against torch's own unfold, which knows two dimensions and zeros only."""
    from netgrow_cli.topology.ops import OPS, Call
    from netgrow_cli.topology.ops.conv import patches

    x = inputs(3, 4, 7, 8)
    attrs = {**{name: attr.default for name, attr in OPS["conv2d"].attrs.items()}, "stride": [2, 1], "padding": [1, 2]}
    attrs["dilation"] = [1, 2]
    found = patches(Call(torch, None, [x], {}, (), 1, attrs), (3, 2))  # type: ignore[arg-type]
    wanted = functional.unfold(x, (3, 2), (1, 2), (1, 2), (2, 1))
    assert torch.equal(found.flatten(2).transpose(1, 2), wanted)
