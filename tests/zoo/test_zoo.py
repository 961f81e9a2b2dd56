"""A sample of the zoo: models of torchvision and timm, traced, certified, changed, and loaded into the real model."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("timm")

from benchmarks.zoo.models import catalogue
from benchmarks.zoo.study import study

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

# By model: the least share of the parameters that may change.
SAMPLE = {
    "torchvision": {
        "resnet18": 0.999,
        "resnext50_32x4d": 0.999,
        "regnet_x_400mf": 0.999,
        "shufflenet_v2_x0_5": 0.99,
        "mobilenet_v3_small": 0.999,
        "mnasnet0_5": 0.999,
        "densenet121": 0.999,
        "efficientnet_b0": 0.999,
        "googlenet": 0.999,
        "convnext_tiny": 0.999,
        "vit_b_32": 0.999,
        "swin_t": 0.999,
        "maxvit_t": 0.99,
        "lraspp_mobilenet_v3_large": 0.999,
        "r3d_18": 0.999,
    },
    "timm": {"timm/vit_tiny_patch16_224": 0.999, "timm/ghostnet_050": 0.99, "timm/eva02_tiny_patch14_224": 0.999},
}
MOST_WIDTHS = 12
"""Widths of a model that are changed, spread over it; the script changes all."""


@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in SAMPLE.items() for name in names])
def test_model(library: str, name: str) -> None:
    found = study(catalogue(library)[name], most_widths=MOST_WIDTHS)
    assert found.graph < 1e-12 and found.certificate < 1e-12, found.culprits
    assert found.share >= SAMPLE[library][name] and found.unknown == {}
    for command in ("expand", "split", "prune"):
        change = found.changes[command]
        assert change.failed == {} and change.coded == {}, command
        assert change.done + sum(change.refused.values()) >= change.asked and change.done > 0, command
