"""The shipped spec of resnets against torchvision itself, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof.permutation import certify

torchvision = pytest.importorskip("torchvision")
torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "widths"), [("resnet18", 12), ("resnet50", 37), ("resnext50_32x4d", 53), ("wide_resnet50_2", 37)]
)
def test_outputs_and_units(name: str, widths: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().double().eval()
    for key, tensor in model.state_dict().items():
        if "running" in key:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    x = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    with opened(tmp_path / "model.pt", Options()) as job:
        assert job.found.shipped == "resnet"
        found = job.network.outputs({"batch": 2, "height": 64, "width": 48}, {"x": x}, torch.float64)[0]
        with torch.no_grad():
            torch.testing.assert_close(found, model(x), rtol=1e-12, atol=1e-12)
        outcome = certify(job.network, job.probes(2, 0), seed=0, dtype="float64", tolerance=1e-12)
    assert outcome.equivalence.equal and outcome.widths == widths
