"""What `netgrow_cli.UnitRecorder` adds to a training step, in CPU time: two equal trainings side by side, step by step.

    python -m benchmarks.recorder [--steps 200] [--write]

One of them has a recorder. The steps alternate, so that whatever else the machine does meets both; of each the median
is taken. --write puts the table into docs/choosing.md.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import netgrow_cli

DOCS = Path(__file__).resolve().parent.parent / "docs" / "choosing.md"
EVERY = 20


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    """A policy-sized network."""
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, torch.randn(64, 64), torch.randint(0, 10, (64,))


def convolutional() -> tuple[nn.Module, Tensor, Tensor]:
    """A small image network."""
    parts = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(64 * 14 * 14, 10))
    return model, torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))


def transformer() -> tuple[nn.Module, Tensor, Tensor]:
    """Two blocks of width 256."""
    block = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(block, 2), nn.Flatten(), nn.Linear(256 * 64, 10))
    return model, torch.randn(8, 64, 256), torch.randint(0, 10, (8,))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "MLP 64-256-256-10, batch 64": mlp,
    "convolutions 32, 64, batch 32": convolutional,
    "transformer of 2 blocks, width 256, 8 x 64 tokens": transformer,
}


def overhead(make: Callable[[], tuple[nn.Module, Tensor, Tensor]], steps: int) -> dict[str, float]:
    """Milliseconds of CPU time of a plain step; what a recorder adds in percent, where it looks and on average."""
    torch.manual_seed(0)
    plain, inputs, targets = make()
    watched, beside = copy.deepcopy(plain), copy.deepcopy(plain)
    runs = [
        _Run(plain, None),
        _Run(watched, netgrow_cli.UnitRecorder(watched, every=1)),
        _Run(beside, netgrow_cli.UnitRecorder(beside, every=10**9)),
    ]
    for _ in range(steps):
        for run in runs:
            run.step(inputs, targets)
    without, looking, idle = (statistics.median(run.seconds[steps // 10 :]) for run in runs)
    return {
        "step": without * 1e3,
        "looking": 100 * (looking / without - 1),
        "mean": 100 * ((looking + (EVERY - 1) * idle) / (EVERY * without) - 1),
    }


class _Run:
    def __init__(self, model: nn.Module, recorder: netgrow_cli.UnitRecorder | None) -> None:
        self._model, self._recorder = model, recorder
        self._optimizer = torch.optim.Adam(model.parameters())
        self.seconds: list[float] = []

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        began = time.process_time()
        F.cross_entropy(self._model(inputs), targets).backward()
        if self._recorder is not None:
            self._recorder.step()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.seconds.append(time.process_time() - began)


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        f"| network | a step, ms | a step that is looked at | on average (`every={EVERY}`) |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {one['step']:.2f} | +{one['looking']:.0f}% | {one['mean']:+.1f}% |" for name, one in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = table({name: overhead(make, given.steps) for name, make in NETWORKS.items()})
    print(result)
    if given.write:
        text = DOCS.read_text(encoding="utf-8")
        marked = f"<!-- recorder -->\n{result}\n<!-- /recorder -->"
        DOCS.write_text(re.sub(r"<!-- recorder -->.*?<!-- /recorder -->", lambda _: marked, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
