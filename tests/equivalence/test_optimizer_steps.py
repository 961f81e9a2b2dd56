"""After an edit the optimizer's next step is the edited next step, for every optimizer that netgrow knows.

In float64 and without eps, so that what the mathematics says is exact can be asked to be.
"""

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
from netgrow_cli.checkpoint.optimizer_kinds import FAMILIES, kind_of
from tests.equivalence.edits import inputs, randomise, save
from tests.equivalence.test_surgery_exact import MLP, Mlp, constant_unit

NAMES = ["a.weight", "a.bias", "b.weight", "b.bias"]
DEAD, TIMES, EPS = 2, 12, 1e-16


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023), which torch does not have: sign of an interpolation of gradients."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                average = state["exp_avg"]
                p.add_((average * group["betas"][0] + p.grad * (1 - group["betas"][0])).sign(), alpha=-group["lr"])
                average.mul_(group["betas"][1]).add_(p.grad, alpha=1 - group["betas"][1])


# By name: how it is made, its family, and whether its steps grow with the gradient.
OPTIMIZERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], str, bool]] = {
    "adam": (lambda p: torch.optim.Adam(p, lr=1e-2, eps=EPS), "adam", False),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=1e-2, eps=EPS, weight_decay=0), "adam", False),
    "amsgrad": (lambda p: torch.optim.Adam(p, lr=1e-2, eps=EPS, amsgrad=True), "adam", False),
    "nadam": (lambda p: torch.optim.NAdam(p, lr=1e-2, eps=EPS), "adam", False),
    "radam": (lambda p: torch.optim.RAdam(p, lr=1e-2, eps=EPS), "adam", False),
    "adamax": (lambda p: torch.optim.Adamax(p, lr=1e-2, eps=EPS), "adamax", False),
    "sgd": (lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), "sgd", True),
    "nesterov": (lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True), "sgd", True),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=EPS), "rmsprop", False),
    "rmsprop, all of it": (
        lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=EPS, momentum=0.9, centered=True),
        "rmsprop",
        False,
    ),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=EPS), "adagrad", False),
    "adadelta": (lambda p: torch.optim.Adadelta(p, lr=100.0, eps=EPS), "adadelta", False),
    "asgd": (lambda p: torch.optim.ASGD(p, lr=1e-2, lambd=0.0, t0=3.0), "asgd", True),
    "rprop": (lambda p: torch.optim.Rprop(p, lr=1e-3), "rprop", False),
    "lion": (lambda p: Lion(p, lr=1e-3), "lion", False),
}


def test_every_family_is_tested() -> None:
    assert {family for _, family, _ in OPTIMIZERS.values()} == set(FAMILIES)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = inputs(64, 4, seed=number)
    target = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin(), x[:, 3].abs()], 1)
    optimizer.zero_grad()
    (module(x) - target).square().mean().backward()
    optimizer.step()


def trained(folder: Path, kind: str) -> tuple[Path, nn.Module, torch.optim.Optimizer]:
    """A network of 6 units, the third of them dead, and its optimizer after some steps, in a file."""
    module = constant_unit(randomise(Mlp()), DEAD).double()
    with torch.no_grad():
        module.a.bias[DEAD] = -50.0
    optimizer = OPTIMIZERS[kind][0](module.parameters())
    for number in range(TIMES):
        step(module, optimizer, number)
    tree = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    assert kind_of(tree["optimizer"]["state"], tree["optimizer"]["param_groups"]) == OPTIMIZERS[kind][1]
    return save(folder, MLP, copy.deepcopy(tree)), module, optimizer


def steps(path: Path, kind: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any, Any, Any]:
    """Parameters before and after the next step, of the network as it was and of the edited one."""
    tree = torch.load(path, weights_only=True)
    fitted = netgrow_cli.fit(copy.deepcopy(module), path).train()
    resumed = OPTIMIZERS[kind][0](fitted.parameters())
    resumed.load_state_dict(tree["optimizer"])
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fresh = {name: p.detach().clone() for name, p in fitted.named_parameters()}
    step(module, optimizer, TIMES)
    step(fitted, resumed, TIMES)
    for parameter in fitted.parameters():
        for value in resumed.state[parameter].values():
            assert not torch.is_tensor(value) or value.shape in (parameter.shape, ())
            assert not torch.is_tensor(value) or bool(value.isfinite().all())
    return before, dict(module.named_parameters()), fresh, dict(fitted.named_parameters())


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_expand(tmp_path: Path, kind: str) -> None:
    """Old units go on as if there were no others, and new ones move no faster than the fastest old one."""
    path, module, optimizer = trained(tmp_path, kind)
    new = netgrow_cli.expand(path, layer="a", add=3, probes=64).output
    before, old, start, grown = steps(new, kind, module, optimizer)
    for name, axis in (("a.weight", 0), ("a.bias", 0), ("b.weight", 1)):
        close(grown[name].narrow(axis, 0, 6), old[name])
        moved = (grown[name] - start[name]).detach().narrow(axis, 6, 3).abs().max()
        assert float(moved) <= 3 * float((old[name] - before[name]).detach().abs().max()) + 1e-12
    close(grown["b.bias"], old["b.bias"])
    assert bool((grown["b.weight"] - start["b.weight"])[:, 6:].any())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_prune(tmp_path: Path, kind: str) -> None:
    path, module, optimizer = trained(tmp_path, kind)
    new = netgrow_cli.prune(path, layer="a", units=[DEAD], probes=64).output
    _, old, _, left = steps(new, kind, module, optimizer)
    kept = torch.tensor([0, 1, 3, 4, 5])
    for name, axis in (("a.weight", 0), ("a.bias", 0), ("b.weight", 1)):
        close(left[name], old[name].index_select(axis, kept))
    close(left["b.bias"], old["b.bias"])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("command", ["split", "recycle"])
def test_copies(tmp_path: Path, kind: str, command: str) -> None:
    """A copy's rows step as the original's do, or by its share where steps grow with the gradient; its columns step
    as the original's; every other unit goes on exactly."""
    path, module, optimizer = trained(tmp_path, kind)
    if command == "split":
        report = netgrow_cli.split(path, layer="a", units=[4], noise=0.0, probes=64)
    else:
        report = netgrow_cli.recycle(path, layer="a", noise=0.0, probes=64)
    ((unit, copies),) = report.plan.changes[0].copies.items()
    assert len(copies) == 2 and (command == "split" or DEAD in copies)
    before, old, start, new = steps(report.output, kind, module, optimizer)
    linear = OPTIMIZERS[kind][2]
    others = [n for n in range(6) if n != unit and n not in copies]
    for name in ("a.weight", "a.bias"):
        close(new[name][others], old[name][others])
        for place in copies:
            close(new[name][place] - start[name][place], (old[name] - before[name])[unit] * (0.5 if linear else 1.0))
    close(new["b.weight"][:, others], old["b.weight"][:, others])
    for place in copies:
        moved = new["b.weight"][:, place] - start["b.weight"][:, place]
        close(moved, (old["b.weight"] - before["b.weight"])[:, unit])
    close(new["b.bias"], old["b.bias"])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_merging_undoes_splitting(tmp_path: Path, kind: str) -> None:
    path, module, optimizer = trained(tmp_path, kind)
    split = netgrow_cli.split(path, layer="a", units=[4], probes=64).output
    merged = netgrow_cli.prune(split, layer="a", duplicates=True, probes=64).output
    _, old, _, new = steps(merged, kind, module, optimizer)
    for name in NAMES:
        close(new[name], old[name])


def test_what_mixes_units_is_refused(tmp_path: Path) -> None:
    """Each names what it is and the way out; nothing is written, and without the optimizer all is."""
    module = randomise(Mlp())
    makers: dict[str, tuple[Any, str]] = {
        "Adafactor": (lambda m: torch.optim.Adafactor(m.parameters()), "factored second moments"),
        "LBFGS": (lambda m: torch.optim.LBFGS(m.parameters()), "one vector"),
    }
    if hasattr(torch.optim, "Muon"):
        makers["Muon"] = (lambda m: torch.optim.Muon([m.a.weight, m.b.weight]), "Muon")
    trees = {}
    for name, (make, why) in makers.items():
        optimizer = make(module)
        loss = module(inputs(8, 4).float()).square().mean()
        loss.backward()
        optimizer.step(lambda value=loss: value)
        trees[name] = ({"optimizer": optimizer.state_dict()}, why)
    eight = {
        n: {"step": 3, "state1": torch.zeros(p.numel(), dtype=torch.uint8), "qmap1": torch.zeros(256)}
        for n, p in enumerate(module.parameters())
    }
    trees["bitsandbytes"] = ({"opt": {"state": eight, "param_groups": [{"params": [0, 1, 2, 3]}]}}, "8-bit")
    bytes_as_adam = {
        n: {key: torch.zeros(p.shape, dtype=torch.uint8) for key in ("exp_avg", "exp_avg_sq")}
        for n, p in enumerate(module.parameters())
    }
    trees["bytes"] = ({"opt": {"state": bytes_as_adam, "param_groups": [{"params": [0, 1, 2, 3]}]}}, "torch.uint8")
    low_rank = {n: {"exp_avg": torch.zeros(2, 2), "exp_avg_sq": torch.zeros(2, 2)} for n in range(4)}
    named = [{"params": [0, 1, 2, 3], "param_names": NAMES}]
    trees["GaLore"] = ({"opt": {"state": low_rank, "param_groups": named}}, r"shape \[2, 2\]")
    apex = {"optimizer_state_dict": {}, "fp32_from_fp16": [[torch.zeros(6, 4)]]}
    trees["Apex"] = ({"optimizer": apex}, "float32 master weights")
    trees["DeepSpeed"] = ({"optimizer": {"single_partition_of_fp32_groups": [torch.zeros(99)]}}, "DeepSpeed")
    for name, (tree, why) in trees.items():
        folder = tmp_path / name
        path = save(folder, MLP, {"model": module.state_dict(), **tree})
        with pytest.raises(CheckpointError, match=f"{why}.*--drop-optimizer"):
            netgrow_cli.expand(path, layer="a", add=3, probes=16)
        assert len(list(folder.iterdir())) == 2
        report = netgrow_cli.expand(path, layer="a", add=3, probes=16, drop_optimizer=True)
        assert set(torch.load(report.output, weights_only=True)) == {"model"}


def test_names_are_written_and_torch_takes_them(tmp_path: Path) -> None:
    """Only where the whole state says which parameter is which; an optimizer made either way loads it."""
    path, module, _ = trained(tmp_path, "adam")
    new = netgrow_cli.expand(path, layer="a", add=1, probes=16).output
    state = torch.load(new, weights_only=True)["optimizer"]
    assert [group["param_names"] for group in state["param_groups"]] == [NAMES]
    for given in (lambda m: m.parameters(), lambda m: m.named_parameters()):
        fitted = netgrow_cli.fit(copy.deepcopy(module), new)
        optimizer = torch.optim.Adam(given(fitted), lr=1e-2)
        optimizer.load_state_dict(state)
        step(fitted, optimizer, 0)
    untouched = {"model": module.state_dict(), "optimizer": torch.optim.Adam(module.parameters()).state_dict()}
    fresh = netgrow_cli.expand(save(tmp_path / "fresh", MLP, untouched), layer="a", add=1, probes=16).output
    assert "param_names" not in torch.load(fresh, weights_only=True)["optimizer"]["param_groups"][0]


def test_frozen_parameters_and_a_scaler(tmp_path: Path) -> None:
    module = randomise(Mlp())
    module.b.requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    module(inputs(8, 4).float()).square().mean().backward()
    optimizer.step()
    scaler = {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 1,
    }
    tree = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler}
    new = torch.load(
        netgrow_cli.expand(save(tmp_path, MLP, tree), layer="a", add=2, probes=16).output, weights_only=True
    )
    assert new["scaler"] == scaler
    assert set(new["optimizer"]["state"]) == {0, 1}
    assert new["optimizer"]["state"][0]["exp_avg"].shape == (8, 4)
    assert int(new["optimizer"]["state"][0]["step"]) == 1
