"""How training goes on after an edit near convergence, with the optimizer's state as netgrow writes it and without.

    python benchmarks/training.py [--seeds 4] [--quick] [--write]

A small network and a convolutional one learn scikit-learn's digits with AdamW until next to nothing is left to learn;
then their checkpoints are edited as files and trained for 50 further steps, on the same batches as the unedited run.
Printed is the peak of the training loss over the first 30 steps, relative to the loss before the edit: geometric mean
over the seeds and the range. --write puts table and curves into docs/training.md and docs/training.svg.
"""

from __future__ import annotations

import argparse
import copy
import math
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "sample_checkpoints")]

import digits  # noqa: E402
import models  # noqa: E402

import netgrow_cli  # noqa: E402

STEPS, PEAK, BATCH, RATE = 50, 30, 64, 1e-3
SEEN = 512  # images that the loss is taken over
UNEDITED = "no edit"
STATES = {
    "netgrow": "as netgrow writes it",
    "zero": "moments of new and copied units zero",
    "copied": "moments copied, not scaled",
    "fresh": "a fresh optimizer",
}
# Which states are something else than netgrow's, by edit.
VARIANTS = {
    "expand": ("netgrow", "zero", "fresh"),
    "split": ("netgrow", "zero", "copied", "fresh"),
    "prune": ("netgrow", "fresh"),
    "recycle": ("netgrow", "zero", "copied", "fresh"),
}
Curves = dict[tuple[str, str], list[list[float]]]


class Study:
    """One network on the digits: how it is made, trained, and edited."""

    def __init__(
        self, title: str, make: Callable[[], nn.Module], layer: str, epochs: int, images: bool, spec: str
    ) -> None:
        self.title, self.make, self.layer, self.epochs = title, make, layer, epochs
        self.data = digits.split(as_images=images)
        self.spec = ROOT / "specs" / spec

    def trained(self, folder: Path, seed: int) -> Path:
        """A checkpoint near convergence; every eighth unit of the layer to edit never fires."""
        torch.manual_seed(seed)
        net = self.make()
        layer = net.get_submodule(self.layer)
        with torch.no_grad():
            layer.weight[::8] = 0.0
            layer.bias[::8] = -1.0
        optimizer = torch.optim.AdamW(net.named_parameters(), lr=2 * RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, self.epochs)
        net.train()
        for epoch in range(self.epochs):
            for rows in self.batches(seed * 1000 + epoch):
                self.step(net, optimizer, rows)
            schedule.step()
        path = folder / "net.pt"
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, path)
        return path

    def batches(self, seed: int) -> list[Tensor]:
        order = torch.randperm(len(self.data[0]), generator=torch.Generator().manual_seed(seed))
        return [rows for rows in order.split(BATCH) if len(rows) == BATCH]

    def step(self, net: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(self.data[0][rows]), self.data[1][rows]).backward()
        optimizer.step()

    @torch.no_grad()
    def loss(self, net: nn.Module) -> float:
        """Over training images, as the network is used."""
        found = F.cross_entropy(net.eval()(self.data[0][:SEEN]), self.data[1][:SEEN])
        net.train()
        return float(found)

    def curve(self, path: Path, state: dict[str, Any] | None, seed: int) -> list[float]:
        """The loss before and after each of the next steps. state: None for a fresh optimizer."""
        net = netgrow_cli.fit(self.make(), path, spec=None).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        found, batches = [self.loss(net)], [rows for n in range(4) for rows in self.batches(77_000 + seed * 10 + n)]
        for rows in batches[:STEPS]:
            self.step(net, optimizer, rows)
            found.append(self.loss(net))
        return found

    def edits(self, path: Path) -> dict[str, netgrow_cli.Report]:
        """All edits of a checkpoint, as files beside it."""
        units = self.make().get_submodule(self.layer).weight.shape[0]
        common: dict[str, Any] = {"layer": self.layer, "spec": self.spec}
        data = path.with_name("probes.npy")
        np.save(data, self.data[0].numpy())
        return {
            "expand": netgrow_cli.expand(path, add=units // 2, **common),
            "split": netgrow_cli.split(path, top=units // 2, **common),
            "prune": netgrow_cli.prune(path, dead=True, probe_data=data, allow_drift=1e-6, **common),
            "recycle": netgrow_cli.recycle(path, probe_data=data, **common),
        }


def states(report: netgrow_cli.Report, old: Path) -> dict[str, dict[str, Any] | None]:
    """The optimizer's state as netgrow writes it, and what else one might do."""
    written = torch.load(report.output, weights_only=True)["optimizer"]
    before = torch.load(old, weights_only=True)["optimizer"]
    zero, copied = copy.deepcopy(written), copy.deepcopy(written)
    names = written["param_groups"][0]["param_names"]
    for identity, name in enumerate(names):
        edit = report.plan.edits.get(name)
        for key in ("exp_avg", "exp_avg_sq") if edit else ():
            for axis in edit.axes:
                index = torch.from_numpy(axis.index.copy())
                counts = torch.bincount(index[index >= 0], minlength=int(edit.before[axis.axis]))
                changed = (index < 0) | (counts[index.clamp(min=0)] > 1)
                zero["state"][identity][key].index_fill_(axis.axis, changed.nonzero().reshape(-1), 0.0)
            value = before["state"][identity][key]
            for axis in edit.axes:
                value = value.index_select(axis.axis, torch.from_numpy(axis.index.clip(0)))
            copied["state"][identity][key] = value
    return {"netgrow": written, "zero": zero, "copied": copied, "fresh": None}


def measure(study: Study, seeds: int) -> Curves:
    """By (edit, state), a curve for each seed, relative to the loss before the edit."""
    curves: Curves = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            path = study.trained(Path(name), seed)
            path.with_name("net.pt.netgrow.yaml").write_bytes(study.spec.read_bytes())
            plain = study.curve(path, torch.load(path, weights_only=True)["optimizer"], seed)
            before = plain[0]
            curves.setdefault((UNEDITED, "netgrow"), []).append([value / before for value in plain])
            for edit, report in study.edits(path).items():
                assert report.plan.changes, f"{edit} found nothing to do"
                for kind, state in states(report, path).items():
                    if kind in VARIANTS[edit]:
                        found = [value / before for value in study.curve(report.output, state, seed)]
                        curves.setdefault((edit, kind), []).append(found)
            print(f"{study.title}, seed {seed}: loss {before:.2g} before", file=sys.stderr)
    return curves


def peaks(curves: list[list[float]]) -> list[float]:
    return [max(curve[1 : PEAK + 1]) for curve in curves]


def number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def table(found: dict[str, Curves]) -> str:
    """Peaks, one row for each edit and state."""
    lines = [f"| edit | optimizer state | {' | '.join(found)} |", f"| --- | --- |{' ---: |' * len(found)}"]
    for edit, kind in next(iter(found.values())):
        cells = []
        for curves in found.values():
            values = peaks(curves[edit, kind])
            mean = math.exp(statistics.mean(map(math.log, values)))
            cells.append(f"{number(mean)} ({number(min(values))} to {number(max(values))})")
        lines.append(f"| {edit} | {STATES[kind] if edit != UNEDITED else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -- the picture -------------------------------------------------------------------------------------

COLOURS = {UNEDITED: "#444444", "netgrow": "#0b7a53", "zero": "#c0392b", "copied": "#b9770e", "fresh": "#2e6db4"}
WIDE, HIGH, LEFT, TOP, GAP = 210, 150, 60, 64, 34


def picture(found: dict[str, Curves]) -> str:
    """Curves as SVG: a row for each network, a panel for each edit; geometric means over the seeds."""
    edits = list(VARIANTS)
    width, height = LEFT + len(edits) * (WIDE + GAP), TOP + len(found) * (HIGH + GAP + 14)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, (kind, text) in enumerate({UNEDITED: "no edit", **STATES}.items()):
        x = LEFT + (0, 90, 235, 500, 700)[place]
        parts.append(f'<path d="M{x} 16h22" stroke="{COLOURS[kind]}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 27}" y="20">{text}</text>')
    for row, (title, curves) in enumerate(found.items()):
        top = TOP + row * (HIGH + GAP + 14)
        parts.append(f'<text x="{LEFT}" y="{top - 22}" font-weight="bold">{title}: training loss / loss before</text>')
        means = {key: [mean_of(column) for column in zip(*several, strict=True)] for key, several in curves.items()}
        low = math.floor(math.log10(min(map(min, means.values()))))
        high = math.ceil(math.log10(max(map(max, means.values()))))
        for column, edit in enumerate(edits):
            left = LEFT + column * (WIDE + GAP)
            parts += panel(left, top, edit, (low, high), means)
    return "\n".join([*parts, "</svg>", ""])


def mean_of(values: Any) -> float:
    return math.exp(statistics.mean(math.log(max(value, 1e-12)) for value in values))


def panel(
    left: int, top: int, edit: str, span: tuple[int, int], means: dict[tuple[str, str], list[float]]
) -> list[str]:
    """One edit's curves on a logarithmic axis."""
    low, high = span

    def y(value: float) -> float:
        return top + HIGH * (high - math.log10(max(value, 10.0**low))) / (high - low)

    parts = [f'<rect x="{left}" y="{top}" width="{WIDE}" height="{HIGH}" fill="none" stroke="#bbbbbb"/>']
    parts.append(f'<text x="{left + WIDE / 2}" y="{top - 6}" text-anchor="middle">{edit}</text>')
    for power in range(low, high + 1):
        level = y(10.0**power)
        parts.append(f'<path d="M{left} {level:.1f}h{WIDE}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 5}" y="{level + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for at in (0, 25, 50):
        x = left + WIDE * at / STEPS
        parts.append(f'<text x="{x:.1f}" y="{top + HIGH + 14}" text-anchor="middle">{at}</text>')
    lines = [(UNEDITED, means[UNEDITED, "netgrow"]), *((kind, means[edit, kind]) for kind in reversed(VARIANTS[edit]))]
    for kind, curve in lines:
        points = " ".join(f"{left + WIDE * n / STEPS:.1f},{y(value):.1f}" for n, value in enumerate(curve))
        dashed = ' stroke-dasharray="4 3"' if kind == UNEDITED else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[kind]}" stroke-width="1.6"{dashed}/>')
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="how many networks of each kind")
    parser.add_argument("--quick", action="store_true", help="short trainings, to see that it runs")
    parser.add_argument("--write", action="store_true", help="into docs/training.md and docs/training.svg")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    short = 20 if given.quick else 1
    found = {
        study.title: measure(study, given.seeds)
        for study in (
            Study("MLP", models.DigitsMLP, "fc1", 200 // short, False, "digits_mlp.yaml"),
            Study("convolutions", models.DigitsConv, "fc", 40 // short, True, "digits_conv.yaml"),
        )
    }
    text = table(found)
    print(text)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    if given.write:
        guide = ROOT / "docs" / "training.md"
        pattern = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
        guide.write_text(pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", guide.read_text("utf-8")), encoding="utf-8")
        (ROOT / "docs" / "training.svg").write_text(picture(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
