"""The sample checkpoints are what their README says: they load, have learnt, and their units are as dead."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

SAMPLES = Path(__file__).resolve().parent.parent / "sample_checkpoints"
MODULES = ("models", "digits", "make", "ppo")
FILES = ("digits_mlp.pt", "digits_conv.safetensors", "actor_critic.pt", "actor_critic.probes.npy")


@pytest.fixture
def sample_module(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Import a file of sample_checkpoints as the plain module that it is, and forget it afterwards."""
    monkeypatch.syspath_prepend(str(SAMPLES))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def models(sample_module) -> ModuleType:
    return sample_module("models")


def load(name: str) -> dict:
    path = SAMPLES / name
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def actor_critic(models: ModuleType) -> torch.nn.Module:
    net = models.ActorCritic()
    net.load_state_dict(load("actor_critic.pt"), strict=True)
    return net


def probe_sets() -> tuple[torch.Tensor, torch.Tensor]:
    """The observations beside the checkpoint, and the README's random inputs."""
    observed = torch.from_numpy(np.load(SAMPLES / "actor_critic.probes.npy"))
    generator = torch.Generator().manual_seed(1)
    return observed, torch.rand(4096, 3, generator=generator) * 2 - 1


def readme_counts() -> dict[str, tuple[int, ...]]:
    """The README's table of dead units: name -> (of, on the probes, on random inputs)."""
    rows = [line.strip("|").split("|") for line in (SAMPLES / "README.md").read_text("utf-8").splitlines()]
    counted = (row for row in rows if len(row) == 4 and all(cell.strip().isdigit() for cell in row[1:]))
    return {row[0].strip(): tuple(int(cell) for cell in row[1:]) for row in counted}


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_small(name: str) -> None:
    assert 0 < (SAMPLES / name).stat().st_size < 2_000_000


def test_digits_mlp_has_learnt(models: ModuleType, sample_module) -> None:
    pytest.importorskip("sklearn")
    digits = sample_module("digits")
    checkpoint = load("digits_mlp.pt")
    net = models.DigitsMLP()
    net.load_state_dict(checkpoint["model_state_dict"], strict=True)
    accuracy = digits.accuracy(net, digits.split())
    assert accuracy >= 0.95
    assert accuracy == pytest.approx(checkpoint["accuracy"], abs=0.005)


def test_digits_mlp_is_a_training_checkpoint(models: ModuleType) -> None:
    checkpoint = load("digits_mlp.pt")
    assert set(checkpoint) == {"model_state_dict", "optimizer_state_dict", "epoch", "accuracy"}
    assert checkpoint["epoch"] == 40
    state = checkpoint["optimizer_state_dict"]
    assert state["param_groups"][0]["param_names"] == list(checkpoint["model_state_dict"])
    net = models.DigitsMLP()
    torch.optim.AdamW(net.named_parameters()).load_state_dict(state)
    for index, parameter in enumerate(net.parameters()):
        assert state["state"][index]["exp_avg"].shape == parameter.shape


def test_digits_conv_has_learnt(models: ModuleType, sample_module) -> None:
    pytest.importorskip("sklearn")
    digits = sample_module("digits")
    net = models.DigitsConv()
    net.load_state_dict(load("digits_conv.safetensors"), strict=True)
    assert digits.accuracy(net.eval(), digits.split(as_images=True)) >= 0.97


def test_actor_critic_has_the_dead_units_of_the_readme(models: ModuleType, sample_module) -> None:
    net = actor_critic(models)
    make = sample_module("make")
    found = [make.dead_units(net, obs) for obs in probe_sets()]
    for dead in found:
        dead["trunk[0:32]"], dead["trunk[32:64]"] = dead["trunk"][:32], dead["trunk"][32:]
    counts = {name: (len(dead), int(dead.sum()), int(found[1][name].sum())) for name, dead in found[0].items()}
    assert counts == readme_counts()


def test_coupled_units_are_zero_where_they_are_read(models: ModuleType) -> None:
    """Other outgoing weights of a dead coupled unit change no output: not mean, not log_std, not value."""
    coupled = torch.tensor([0, 2, 3, 18, 21, 28, 32, 36, 53])
    obs, _ = probe_sets()
    net, other = actor_critic(models), actor_critic(models)
    with torch.no_grad():
        other.trunk.weight[:, coupled] = 5.0
        other.value.weight[:, coupled] = 5.0
        other.mean.weight[:, coupled[coupled < 32]] = 5.0
        other.log_std.weight[:, coupled[coupled >= 32] - 32] = 5.0
        for before, after in zip(net(obs), other(obs), strict=True):
            assert torch.equal(before, after)


def test_actor_critic_swings_the_pendulum_up(models: ModuleType, sample_module) -> None:
    pytest.importorskip("gymnasium")
    ppo = sample_module("ppo")
    trained, _ = ppo.evaluate(actor_critic(models), episodes=20, seed=7)
    untrained, _ = ppo.evaluate(None, episodes=20, seed=7)
    assert trained > -350
    assert trained > untrained + 500


def test_every_width_is_a_constructor_argument(models: ModuleType) -> None:
    mlp = models.DigitsMLP(fc1=70, fc2=9)
    assert mlp(torch.zeros(2, 64)).shape == (2, 10)
    conv = models.DigitsConv(stem=5, inner=7, branch=3, down=11, fc=13)
    assert conv(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    agent = models.ActorCritic(mean_units=33, std_units=20, enc_b=12)
    assert [tuple(out.shape) for out in agent(torch.zeros(2, 3))] == [(2, 1), (2, 1), (2, 1)]
    assert agent.enc_a.out_features == agent.trunk.out_features == 53
