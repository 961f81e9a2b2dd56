"""The resnets that are known by their tensors' names, against a module of torchvision's form and names."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli.errors import SpecError
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.topology.layout import leaves, occurrences
from netgrow_cli.topology.solve import Topology
from netgrow_cli.topology.trace.inputs import parse_input
from netgrow_cli.topology.trace.source import trace_model

torch.set_num_threads(1)


class Block(nn.Module):
    """BasicBlock or Bottleneck, as torchvision has them: the stride is on the first or on the middle convolution."""

    def __init__(self, reads: int, makes: int, inner: int, stride: int, groups: int | None) -> None:
        super().__init__()
        if groups is None:
            kernels = [(reads, inner, 3, stride, 1), (inner, makes, 3, 1, 1)]
        else:
            kernels = [(reads, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, makes, 1, 1, 1)]
        self.count = len(kernels)
        for number, (into, out, size, step, parts) in enumerate(kernels, 1):
            conv = nn.Conv2d(into, out, size, step, size // 2, groups=parts, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or reads != makes:
            self.downsample = nn.Sequential(nn.Conv2d(reads, makes, 1, stride, bias=False), nn.BatchNorm2d(makes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.count + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            x = self.relu(x) if number < self.count else self.relu(x + skip)
        return x


class ResNet(nn.Module):
    def __init__(self, blocks: tuple[int, ...], groups: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        reads = 8
        for stage, count in enumerate(blocks, 1):
            inner = 8 * stage
            makes = inner if groups is None else 2 * inner
            made = [Block(reads if n == 0 else makes, makes, inner, 2 if stage > 1 and n == 0 else 1, groups)
                    for n in range(count)]  # fmt: skip
            self.add_module(f"layer{stage}", nn.Sequential(*made))
            reads = makes
        self.fc = nn.Linear(reads, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


NETS: dict[str, dict[str, Any]] = {
    "basic": {"blocks": (2, 1, 1, 2)},
    "bottleneck": {"blocks": (1, 2, 1, 1), "groups": 1},
    "groups": {"blocks": (1, 2, 1, 1), "groups": 4},
}


def made(name: str, folder: Path) -> tuple[ResNet, Path]:
    torch.manual_seed(0)
    model = ResNet(**NETS[name]).double().eval()
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if key.endswith("var") else torch.randn_like(tensor) * 0.3)
    torch.save(model.state_dict(), folder / "model.pt")
    return model, folder / "model.pt"


def places(topology: Topology) -> set[frozenset[tuple[str, int, tuple[int, ...]]]]:
    found: dict[int, set[tuple[str, int, tuple[int, ...]]]] = {}
    for name, layouts in topology.tensors.items():
        for axis, layout in enumerate(layouts):
            for width in {leaf.id for leaf in leaves(layout)}:
                if topology.widths[width].frozen is None:
                    labels = {(name, axis, tuple(found.tolist())) for found in occurrences(layout, width)}
                    found.setdefault(width, set()).update(labels)
    return {frozenset(all_) for all_ in found.values()}


@pytest.mark.parametrize("name", NETS)
def test_a_resnet_is_known_by_its_names(name: str, tmp_path: Path) -> None:
    model, path = made(name, tmp_path)
    (tmp_path.parent / f"{name}.yaml").write_text(trace_model(model, [parse_input("float64[2,3,40,33]")]).text)
    with opened(path, Options(spec=tmp_path.parent / f"{name}.yaml")) as job:
        traced = places(job.topology)
    with opened(path, Options()) as job:
        assert job.found.origin.startswith("shipped for torchvision's resnets") and job.found.assumed
        assert places(job.topology) == traced
        for height, width in ((40, 33), (64, 64)):
            x = torch.randn(2, 3, height, width, dtype=torch.float64)
            sizes = {"batch": 2, "height": height, "width": width}
            found = job.network.outputs(sizes, {"x": x}, torch.float64)[0]
            with torch.no_grad():
                torch.testing.assert_close(found, model(x), rtol=1e-12, atol=1e-12)
        assert certify(job.network, job.probes(8, 0), seed=0, dtype="float64", tolerance=1e-12).equivalence.equal


def test_a_wider_resnet_goes_back_into_the_module(tmp_path: Path) -> None:
    model, path = made("bottleneck", tmp_path)
    report = netgrow_cli.expand(path, layer=["layer*.conv2", "layer2.0.conv3"], add=4, probes=8)
    wider = netgrow_cli.fit(ResNet(**NETS["bottleneck"]).double(), report.output).eval()
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(wider(x), model(x), rtol=1e-12, atol=1e-12)


def test_what_is_no_resnet_of_torchvision_is_not_taken_for_one(tmp_path: Path) -> None:
    model, path = made("basic", tmp_path)
    changed: dict[str, OrderedDict[str, torch.Tensor]] = {}
    state = OrderedDict(model.state_dict())
    changed["small first kernel"] = OrderedDict(state, **{"conv1.weight": torch.randn(8, 3, 3, 3)})
    changed["squeeze and excitation"] = OrderedDict(state, **{"layer1.0.se.fc1.weight": torch.randn(4, 8, 1, 1)})
    for tensors in changed.values():
        torch.save(tensors, path)
        with pytest.raises(SpecError, match="drafted"), opened(path, Options()):
            pass
