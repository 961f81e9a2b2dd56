"""Scores are what they say: each is computed a second time from the module, by other means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netgrow_cli.errors import Refused, UsageError
from netgrow_cli.jobs.scoring import SOURCES, scored

from .networks import MIXED, Mixed, ids, job_of


@pytest.fixture
def data(tmp_path: Path) -> torch.Tensor:
    """Inputs that are not normal, as a file of probes."""
    pixels = torch.rand(40, 2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "data.npy", pixels.numpy())
    return pixels


def _by_channel(flat: torch.Tensor) -> torch.Tensor:
    return flat.unflatten(1, (6, 25))


def test_activations_are_what_the_module_computes(tmp_path: Path, data: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Mixed().double()
    seen = {
        "conv": model.conv(data).relu().transpose(0, 1).flatten(1),
        "fc": model.fc(model.conv(data).relu().flatten(1)).tanh().T,
        "side": model.side(model.conv(data).relu().flatten(1)).relu().T,
    }
    with job_of(tmp_path, model.state_dict(), MIXED, probe_data=tmp_path / "data.npy") as job:
        widths = ids(job)
        for by, expected in {
            "activation": lambda rows: rows.abs().mean(1),
            "active": lambda rows: (rows != 0).double().mean(1),
            "dormant": lambda rows: rows.abs().mean(1) / rows.abs().mean(),
        }.items():
            found = scored(job, by, [widths[name] for name in seen])
            assert found.evidence == "the 40 rows of data.npy" and not found.random
            for name, rows in seen.items():
                np.testing.assert_allclose(found.values[widths[name]], expected(rows).detach(), rtol=1e-12)


def test_taylor_is_the_first_order_change_of_the_outputs(tmp_path: Path, data: torch.Tensor) -> None:
    """Behind `both` the network is linear: without a unit the outputs change by just what it passes on."""
    torch.manual_seed(0)
    model = Mixed().double()
    flat = model.conv(data).relu().flatten(1)
    value = torch.cat([model.fc(flat).tanh(), model.side(flat).relu()], 1)
    with job_of(tmp_path, model.state_dict(), MIXED, probe_data=tmp_path / "data.npy") as job:
        found = scored(job, "taylor", [ids(job)["fc"], ids(job)["side"]])
        from netgrow_cli.proof.probes import signs

        drawn = signs((40, 3), "0:0:0", torch.float64)
    change = (value[:, :, None] * model.out.weight.T[None] * drawn[:, None]).sum(2).abs().mean(0).detach().numpy()
    np.testing.assert_allclose(found.values[ids(job)["fc"]], change[:5], rtol=1e-10)
    np.testing.assert_allclose(found.values[ids(job)["side"]], change[5:], rtol=1e-10)


def test_taylor_of_a_channel_adds_up_over_its_positions_and_readers(tmp_path: Path, data: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Mixed().double()
    from netgrow_cli.proof.probes import signs

    with job_of(tmp_path, model.state_dict(), MIXED, probe_data=tmp_path / "data.npy") as job:
        found = scored(job, "taylor", [ids(job)["conv"]]).values[ids(job)["conv"]]
    value = model.conv(data).relu().flatten(1).detach().requires_grad_()
    outputs = model.out(torch.cat([model.fc(value).tanh(), model.side(value).relu()], 1))
    (gradient,) = torch.autograd.grad((outputs * signs((40, 3), "0:0:0", torch.float64)).sum(), value)
    expected = _by_channel(value.detach() * gradient).sum(2).abs().mean(0)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def _trained(optimizer: str) -> tuple[Mixed, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Mixed()
    made: torch.optim.Optimizer = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-2)
    for _ in range(3):
        made.zero_grad()
        F.cross_entropy(model(torch.randn(16, 2, 7, 7)), torch.randint(0, 3, (16,))).backward()
        made.step()
    return model, made


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "RMSprop", "Adagrad", "Adamax"])
def test_gradients_from_the_optimizers_state(tmp_path: Path, optimizer: str) -> None:
    model, made = _trained(optimizer)
    state = {"model": model.state_dict(), "optimizer": made.state_dict()}
    with job_of(tmp_path, state, MIXED) as job:
        found = scored(job, "gradient", [ids(job)[name] for name in ("conv", "fc", "side")])
        assert optimizer.lower().rstrip("w") in found.evidence
        values = {name: found.values[ids(job)[name]] for name in ("conv", "fc", "side")}
    for name in ("conv", "fc", "side"):
        layer = getattr(model, name)
        roots = [_root(optimizer, made.state[parameter]).flatten(1) for parameter in (layer.weight,)]
        roots.append(_root(optimizer, made.state[layer.bias])[:, None])
        np.testing.assert_allclose(values[name], torch.cat(roots, 1).mean(1), rtol=1e-6)


def _root(optimizer: str, entries: dict[str, torch.Tensor]) -> torch.Tensor:
    if optimizer == "Adamax":
        return entries["exp_inf"].double()
    key = {"RMSprop": "square_avg", "Adagrad": "sum"}.get(optimizer, "exp_avg_sq")
    corrected = 1 - 0.999 ** float(entries["step"]) if key == "exp_avg_sq" else 1.0
    return (entries[key].double() / corrected).sqrt()


def test_gradients_cannot_be_told_from_momentum(tmp_path: Path) -> None:
    model = Mixed()
    made = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(torch.randn(4, 2, 7, 7)), torch.randint(0, 3, (4,))).backward()
    made.step()
    state = {"model": model.state_dict(), "optimizer": made.state_dict()}
    with job_of(tmp_path, state, MIXED) as job, pytest.raises(Refused, match=r"momentum_buffer.*UnitRecorder"):
        scored(job, "gradient", [ids(job)["fc"]])


def test_the_optimizer_of_another_network_is_not_read(tmp_path: Path) -> None:
    model, _ = _trained("Adam")
    other = nn.Linear(3, 2)
    made = torch.optim.Adam(other.parameters())
    other(torch.randn(2, 3)).sum().backward()
    made.step()
    state = {"model": model.state_dict(), "other": other.state_dict(), "other_optimizer": made.state_dict()}
    with job_of(tmp_path, state, MIXED, key="model") as job, pytest.raises(Refused, match="no optimizer"):
        scored(job, "gradient", [ids(job)["fc"]])


def test_scores_stand_on_random_probes_only_where_they_do(tmp_path: Path) -> None:
    with job_of(tmp_path, Mixed().state_dict(), MIXED, probes=32) as job:
        for by in SOURCES:
            if by != "gradient":
                found = scored(job, by, [ids(job)["fc"]])
                assert found.random == (by in ("activation", "active", "dormant", "taylor"))
                assert ("random" in found.evidence) == found.random
        with pytest.raises(UsageError, match=r"no such score; there are weight, .*file"):
            scored(job, "size", [ids(job)["fc"]])
