"""The optimizer's state goes along: shapes, factors, and training that goes on as if nothing had happened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli import CheckpointError
from tests.equivalence.edits import inputs, randomise, save, spec_of
from tests.equivalence.test_surgery_exact import MLP, Mlp, Normed, constant_unit, normed

Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}
FIRST, SECOND = ("exp_avg", "momentum_buffer"), ("exp_avg_sq", "max_exp_avg_sq")
NAMES = ["a.weight", "a.bias", "b.weight", "b.bias"]


def loss(module: nn.Module, step: int) -> torch.Tensor:
    x = inputs(64, 4, seed=step).float()
    target = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin(), x[:, 3].abs()], 1)
    return (module(x) - target).square().mean()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, start: int, steps: int) -> list[float]:
    found = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        value = loss(module, step)
        value.backward()
        optimizer.step()
        found.append(float(value.detach()))
    return found


def trained(folder: Path, kind: str, module: nn.Module, text: str, steps: int = 30) -> tuple[Path, dict[str, Any]]:
    """A checkpoint with model and optimizer."""
    module.train()
    optimizer = OPTIMIZERS[kind](module.parameters())
    train(module, optimizer, 0, steps)
    tree = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": steps, "note": "kept"}
    return save(folder, text, tree), copy.deepcopy(tree)


def resumed(module: nn.Module, path: Path, kind: str) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    """The module and a fresh optimizer, loaded from a checkpoint."""
    tree = torch.load(path, weights_only=True)
    fitted = netgrow_cli.fit(copy.deepcopy(module), path).train()
    optimizer = OPTIMIZERS[kind](fitted.parameters())
    optimizer.load_state_dict(tree["optimizer"])
    return fitted, optimizer, tree


def by_name(tree: dict[str, Any], names: list[str] = NAMES) -> dict[str, dict[str, torch.Tensor]]:
    state = tree["optimizer"]["state"]
    return {name: {k: v for k, v in state[n].items() if torch.is_tensor(v) and v.dim()} for n, name in enumerate(names)}


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_expand(tmp_path: Path, kind: str) -> None:
    module = randomise(Mlp())
    path, tree = trained(tmp_path, kind, module, MLP)
    report = netgrow_cli.expand(path, layer="a", add=3, probes=64)
    old, new = by_name(tree), by_name(torch.load(report.output, weights_only=True))
    for name, axis in (("a.weight", 0), ("a.bias", 0), ("b.weight", 1)):
        for key, moment in old[name].items():
            grown = new[name][key]
            assert torch.equal(grown.narrow(axis, 0, 6), moment)
            fresh = grown.narrow(axis, 6, 3)
            close(fresh, torch.full_like(fresh, float(moment.double().mean()) if key in SECOND else 0.0))
    assert all(torch.equal(new["b.bias"][key], moment) for key, moment in old["b.bias"].items())
    check_goes_on(module, path, report.output, kind)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("ways", (2, 3))
def test_split(tmp_path: Path, kind: str, ways: int) -> None:
    module = randomise(Mlp())
    path, tree = trained(tmp_path, kind, module, MLP)
    report = netgrow_cli.split(path, layer="a", units=[1, 4], ways=ways, probes=64)
    old, new = by_name(tree), by_name(torch.load(report.output, weights_only=True))
    places = {2: ((1, 0.5), (6, 0.5)), 3: ((1, 0.5), (6, 0.25), (8, 0.25))}[ways]
    for name in ("a.weight", "a.bias"):
        for key, moment in old[name].items():
            for place, share in places:
                close(new[name][key][place], moment[1] * share ** (2 if key in SECOND else 1))
            close(new[name][key][0], moment[0])
    for key, moment in old["b.weight"].items():
        for place, _ in places:
            close(new["b.weight"][key][:, place], moment[:, 1])
    check_goes_on(module, path, report.output, kind)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_split_and_merge_gives_the_moments_back(tmp_path: Path, kind: str) -> None:
    module = randomise(Mlp())
    path, tree = trained(tmp_path, kind, module, MLP)
    there = netgrow_cli.split(path, layer="a", units=[0, 5], ways=3, probes=64).output
    back = netgrow_cli.prune(there, layer="a", duplicates=True, probes=64).output
    old, new = by_name(tree), by_name(torch.load(back, weights_only=True))
    for name in NAMES:
        for key, moment in old[name].items():
            torch.testing.assert_close(new[name][key], moment, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_prune_and_recycle(tmp_path: Path, kind: str) -> None:
    module = constant_unit(randomise(Mlp()), 2)
    with torch.no_grad():
        module.a.bias[2] = -5.0
    path, tree = trained(tmp_path, kind, module, MLP)
    report = netgrow_cli.prune(path, layer="a", units=[2], probes=64)
    old, new = by_name(tree), by_name(torch.load(report.output, weights_only=True))
    kept = torch.tensor([0, 1, 3, 4, 5])
    for name, axis in (("a.weight", 0), ("a.bias", 0), ("b.weight", 1)):
        for key, moment in old[name].items():
            assert torch.equal(new[name][key], moment.index_select(axis, kept))
    check_goes_on(module, path, report.output, kind)

    report = netgrow_cli.recycle(path, layer="a", probes=64)
    ((live, copies),) = report.plan.changes[0].copies.items()
    new = by_name(torch.load(report.output, weights_only=True))
    for key, moment in old["a.weight"].items():
        for place in copies:
            close(new["a.weight"][key][place], moment[live] * (0.25 if key in SECOND else 0.5))
    check_goes_on(module, path, report.output, kind)


def test_a_gain_that_is_rescaled_has_smaller_gradients(tmp_path: Path) -> None:
    module = randomise(Normed(nn.RMSNorm(6, 1e-5)))
    path, tree = trained(tmp_path, "adamw", module, normed("op: rms_norm, eps: 0.00001"))
    report = netgrow_cli.expand(path, layer="a", add=2, probes=64)
    names = [name for name, _ in module.named_parameters()]
    old = by_name(tree, names)["norm.weight"]
    new = by_name(torch.load(report.output, weights_only=True), names)["norm.weight"]
    scale = (6 / 8) ** 0.5
    close(new["exp_avg"][:6], old["exp_avg"] / scale)
    close(new["exp_avg_sq"][:6], old["exp_avg_sq"] / scale**2)
    check_goes_on(module, path, report.output, "adamw")


def check_goes_on(module: nn.Module, old: Path, new: Path, kind: str, steps: int = 30) -> None:
    """Training resumes from both, and the edited run stays with the other."""
    plain = train(*resumed(module, old, kind)[:2], 30, steps)
    fitted, optimizer, tree = resumed(module, new, kind)
    assert tree["step"] == 30 and tree["note"] == "kept"
    for parameter in fitted.parameters():
        entries = optimizer.state[parameter]
        assert all(v.shape == parameter.shape for v in entries.values() if torch.is_tensor(v) and v.dim())
    edited = train(fitted, optimizer, 30, steps)
    assert edited[0] == pytest.approx(plain[0], rel=1e-4)
    assert max(edited) <= 2 * max(plain)
    assert sum(edited) / steps <= 1.3 * sum(plain) / steps


def test_the_optimizer_can_be_left_out(tmp_path: Path) -> None:
    path, _ = trained(tmp_path, "adamw", randomise(Mlp()), MLP)
    report = netgrow_cli.expand(path, layer="a", add=3, probes=64, drop_optimizer=True)
    tree = torch.load(report.output, weights_only=True)
    assert "optimizer" not in tree
    assert tree["note"] == "kept"


SQUARE = spec_of("x: [batch, 4]", "b", a="op: linear, from: x", r="op: relu, from: a", b="op: linear, from: r")


class Square(nn.Module):
    """Two layers of one shape, so that only the order tells their moments apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


def test_what_is_ambiguous_is_refused(tmp_path: Path) -> None:
    module = randomise(Square())
    # Two groups, neither in the order of the state dict: nothing says which moments are whose.
    groups = [{"params": [module.b.weight, module.b.bias]}, {"params": [module.a.weight], "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    module(inputs(8, 4).float()).square().mean().backward()
    optimizer.step()
    path = save(tmp_path, SQUARE, {"model": module.state_dict(), "optimizer": optimizer.state_dict()})
    with pytest.raises(CheckpointError, match="--drop-optimizer"):
        netgrow_cli.expand(path, layer="a", add=3, probes=64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pt", "net.pt.netgrow.yaml"]
    netgrow_cli.expand(path, layer="a", add=3, probes=64, drop_optimizer=True)


def test_names_settle_it(tmp_path: Path) -> None:
    module = randomise(Square())
    groups = [
        {"params": [("b.weight", module.b.weight), ("b.bias", module.b.bias)]},
        {"params": [("a.bias", module.a.bias), ("a.weight", module.a.weight)]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    module(inputs(8, 4).float()).square().mean().backward()
    optimizer.step()
    path = save(tmp_path, SQUARE, {"model": module.state_dict(), "optimizer": optimizer.state_dict()})
    tree = torch.load(netgrow_cli.expand(path, layer="a", add=3, probes=64).output, weights_only=True)
    shapes = [tuple(tree["optimizer"]["state"][n]["exp_avg"].shape) for n in range(4)]
    assert shapes == [(4, 7), (4,), (7,), (7, 4)]


def test_a_kind_of_state_that_is_not_known_is_refused(tmp_path: Path) -> None:
    module = randomise(Mlp())
    optimizer = torch.optim.Adafactor(module.parameters())
    module(inputs(8, 4).float()).square().mean().backward()
    optimizer.step()
    path = save(tmp_path, MLP, {"model": module.state_dict(), "optimizer": optimizer.state_dict()})
    with pytest.raises(CheckpointError, match=r"factored second moments \(Adafactor\).*--drop-optimizer"):
        netgrow_cli.expand(path, layer="a", add=3, probes=64)
