"""What a recorder keeps is what the training steps did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import netgrow_cli
from netgrow_cli.errors import NetgrowError, Refused, UsageError
from netgrow_cli.jobs.scoring import scored

from .networks import MIXED, RECURRENT, Mixed, ids, job_of


def _steps(model: nn.Module, recorder: netgrow_cli.UnitRecorder, count: int = 4) -> list[dict[str, torch.Tensor]]:
    """Train; of each step, the gradients (and the products with the weights), and what layers read."""
    found = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(count):
        pixels = torch.randn(8, 2, 7, 7)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), torch.randint(0, 3, (8,))).backward()
        recorder.step()
        with torch.no_grad():
            flat = model.conv(pixels).relu().flatten(1)  # type: ignore[operator,union-attr]
            both = torch.cat([model.fc(flat).tanh(), model.side(flat).relu()], 1)  # type: ignore[operator]
        found.append(
            {f"g {name}": value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
            | {f"w {name}": value.detach().clone() for name, value in model.named_parameters()}
            | {"flat": flat, "both": both}
        )
        optimizer.step()
    return found


@pytest.mark.parametrize("every", [1, 2])
def test_scores_of_a_recording(tmp_path: Path, every: int) -> None:
    torch.manual_seed(0)
    model = Mixed()
    recorder = netgrow_cli.UnitRecorder(model, every=every)
    steps = _steps(model, recorder)[::every]
    recorder.save(tmp_path / "units.safetensors")
    with job_of(tmp_path, model.state_dict(), MIXED) as job:
        widths = [ids(job)[name] for name in ("conv", "fc", "side")]
        found = {
            by: scored(job, by, widths, tmp_path / "units.safetensors")
            for by in ("gradient", "activation", "active", "dormant", "taylor", "file")
        }
    assert found["gradient"].evidence == f"gradient recorded over {len(steps)} training steps (units.safetensors)"
    for width, name in zip(widths, ("conv", "fc", "side"), strict=True):
        gradient = [torch.cat([s[f"g {name}.weight"].flatten(1), s[f"g {name}.bias"][:, None]], 1) for s in steps]
        _same(found["gradient"].values[width], torch.stack(gradient).abs().mean((0, 2)))
        _same(found["file"].values[width], torch.stack(gradient).abs().mean((0, 2)))
        products = [(s[f"g {name}.weight"] * s[f"w {name}.weight"]).flatten(1).sum(1).abs() for s in steps]
        _same(found["taylor"].values[width], torch.stack(products).mean(0))
        read = torch.stack([_read(s, name) for s in steps]).movedim(2, 0).flatten(1)
        _same(found["activation"].values[width], read.abs().mean(1))
        _same(found["active"].values[width], (read != 0).float().mean(1))
        _same(found["dormant"].values[width], read.abs().mean(1) / read.abs().mean())


def _read(step: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """[rows, units, positions] of what is read of a layer."""
    if name == "conv":
        return step["flat"].unflatten(1, (6, 25))
    return (step["both"][:, :5] if name == "fc" else step["both"][:, 5:])[:, :, None]


def _same(found: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.double(), rtol=2e-5, atol=1e-9)


def test_recurrent_layers(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(steps)[0][:, -1])

    torch.manual_seed(0)
    model = Net()
    recorder = netgrow_cli.UnitRecorder(model, every=1)
    model(torch.randn(8, 6, 3)).square().sum().backward()
    recorder.step()
    recorder.save(tmp_path / "units.safetensors")
    rnn = model.rnn
    rows = [g.grad.unflatten(0, (4, 5)).transpose(0, 1).flatten(1) for g in rnn.parameters()]  # type: ignore[union-attr]
    with job_of(tmp_path, model.state_dict(), RECURRENT) as job:
        width = ids(job)["rnn"]
        found = scored(job, "gradient", [width], tmp_path / "units.safetensors")
        _same(found.values[width], torch.cat(rows, 1).abs().mean(1))


def test_steps_with_infinities_do_not_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = Mixed(), Mixed()
    other.load_state_dict(model.state_dict())
    first, second = (netgrow_cli.UnitRecorder(one, every=1) for one in (model, other))
    pixels = torch.randn(4, 2, 7, 7)
    for one, recorder, times in ((model, first, (1.0,)), (other, second, (1.0, float("inf")))):
        for factor in times:
            one.zero_grad()
            (one(pixels).sum() * factor).backward()
            recorder.step()
        recorder.save(tmp_path / f"{len(times)}.safetensors")
    with job_of(tmp_path, model.state_dict(), MIXED) as job:
        width = ids(job)["conv"]
        one, two = (scored(job, "gradient", [width], tmp_path / f"{n}.safetensors").values[width] for n in (1, 2))
        np.testing.assert_array_equal(one, two)


def test_a_part_of_the_model_and_wrapped_ones(tmp_path: Path) -> None:
    """A recorder of a part, or of a wrapped model, names its parameters otherwise than the checkpoint."""
    torch.manual_seed(0)
    model = Mixed()

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.module(pixels)  # type: ignore[no-any-return]

    for name, recorded in (("wrapped", Wrapper()), ("part", model)):
        with netgrow_cli.UnitRecorder(recorded, every=1) as recorder:
            recorded.zero_grad()
            recorded(torch.ones(2, 2, 7, 7)).sum().backward()
            recorder.step()
        recorder.save(tmp_path / f"{name}.safetensors")
    nested = {f"policy.{key}": value for key, value in model.state_dict().items()}
    spec = (
        MIXED.replace("  conv:", "  policy.conv:")
        .replace("  fc:", "  policy.fc:")
        .replace("from: fc}", "from: policy.fc}")
    )
    spec = spec.replace("  side:", "  policy.side:").replace("from: side}", "from: policy.side}")
    spec = spec.replace("  out:", "  policy.out:").replace("from: conv}", "from: policy.conv}")
    with job_of(tmp_path, nested, spec.replace("outputs: [out]", "outputs: [policy.out]")) as job:
        values = scored(job, "gradient", [ids(job)["policy.fc"]], tmp_path / "part.safetensors").values
    with job_of(tmp_path, model.state_dict(), MIXED) as job:
        same = scored(job, "gradient", [ids(job)["fc"]], tmp_path / "wrapped.safetensors").values
    np.testing.assert_array_equal(*values.values(), *same.values())


def test_layers_that_do_not_run_at_every_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed()
    recorder = netgrow_cli.UnitRecorder(model, every=1)
    sizes = []
    for side in (True, False, True):
        model.zero_grad(set_to_none=True)
        flat = model.conv(torch.randn(4, 2, 7, 7)).relu().flatten(1)
        (model.side(flat) if side else model.fc(flat)).square().sum().backward()
        if side:
            sizes.append(model.side.weight.grad.abs().mean(1))  # type: ignore[union-attr]
        recorder.step()
    recorder.save(tmp_path / "units.safetensors")
    from safetensors.torch import load_file

    torch.testing.assert_close(load_file(tmp_path / "units.safetensors")["gradient/side.weight/0"], sum(sizes) / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model, path: netgrow_cli.UnitRecorder(model, every=0), "at least 1"),
        (lambda model, path: netgrow_cli.UnitRecorder(model).save(path / "a.safetensors"), "no step was recorded"),
        (lambda model, path: _recorded(model).save(path / "a.pt"), "safetensors"),
    ],
)
def test_misuse_is_named(tmp_path: Path, make: object, said: str) -> None:
    with pytest.raises(NetgrowError, match=said):
        make(Mixed(), tmp_path)  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def _recorded(model: Mixed) -> netgrow_cli.UnitRecorder:
    recorder = netgrow_cli.UnitRecorder(model, every=1)
    model(torch.randn(2, 2, 7, 7)).sum().backward()
    recorder.step()
    return recorder


def test_another_models_recording_is_refused(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    recorder = netgrow_cli.UnitRecorder(other, every=1)
    other(torch.randn(2, 3)).sum().backward()
    recorder.step()
    recorder.save(tmp_path / "other.safetensors")
    with job_of(tmp_path, Mixed().state_dict(), MIXED) as job:
        with pytest.raises(Refused, match=r"another model: it has '0\.bias', the checkpoint has 'conv\.weight'"):
            scored(job, "gradient", [ids(job)["fc"]], tmp_path / "other.safetensors")
        with pytest.raises(UsageError, match="a recorder, which holds activation, active, dormant, gradient, taylor"):
            scored(job, "weight", [ids(job)["fc"]], tmp_path / "other.safetensors")


def test_hooks_are_gone_after_close() -> None:
    model = Mixed()
    with netgrow_cli.UnitRecorder(model, every=1):
        assert model.conv._forward_pre_hooks and model.out._forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in model.modules())
