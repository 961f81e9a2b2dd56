"""What pruning costs, and how much of it `--compensate` makes up for, beside Torch-Pruning on the same data.

    python benchmarks/compensation.py [--peer-python PYTHON] [--seeds 4] [--quick] [--redraw]

Small convolutional networks learn scikit-learn's digits; then the same share of the units of every layer but the last
is pruned from each, and nothing is trained afterwards. Measured on the test images are the accuracy and the drift: the
root mean square of the differences of the outputs (logits) over that of the outputs. Torch-Pruning is needed for its
own lines only, by an interpreter that has it and torch (--peer-python). Runs are kept in benchmarks/compensation.jsonl;
table and picture go to docs/compensation.md and docs/pictures/compensation.png. It needs `pip install '.[benchmarks]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "sample_checkpoints")]

import digits  # noqa: E402
import models  # noqa: E402

import netgrow_cli  # noqa: E402

RESULTS = Path(__file__).with_name("compensation.jsonl")
PEER = Path(__file__).with_name("compensation_peer.py")
PAGE, PICTURE = ROOT / "docs" / "compensation.md", ROOT / "docs" / "pictures" / "compensation.png"
SPEC = ROOT / "specs" / "digits_conv.yaml"
RATIOS = (0.125, 0.25, 0.375, 0.5, 0.75)
"""Shares that are whole numbers of units in every layer, so that nobody's rounding counts."""
EPOCHS, RATE = 30, 2e-3
RANDOM_PROBES = 1024

GREY, BLUE, ORANGE, GREEN, PURPLE = "#5a5a5a", "#0072b2", "#d55e00", "#009e73", "#b05a8c"
# How each method is called, drawn (colour, line), and what netgrow is told.
METHODS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "weight": ("netgrow by weight", BLUE, ":", {"by": "weight"}),
    "activation": ("netgrow by activation", GREEN, ":", {"by": "activation"}),
    "tp-magnitude": ("Torch-Pruning, magnitude", ORANGE, "--", {}),
    "tp-taylor": ("Torch-Pruning, Taylor", PURPLE, "--", {}),
    "weight-random": ("netgrow by weight, --compensate without data", GREY, "-", {"by": "weight", "compensate": True}),
    "weight-compensated": ("netgrow by weight, --compensate", BLUE, "-", {"by": "weight", "compensate": True}),
    "activation-compensated": (
        "netgrow by activation, --compensate",
        GREEN,
        "-",
        {"by": "activation", "compensate": True},
    ),
}
Line = dict[str, Any]
Floats = NDArray[np.float64]


# -- runs ----------------------------------------------------------------------------------------------


def trained(path: Path, data: digits.Split, seed: int, epochs: int) -> models.DigitsConv:
    torch.manual_seed(seed)
    net = models.DigitsConv()
    digits.train(net, torch.optim.AdamW(net.parameters(), lr=RATE), data, epochs)
    torch.save(net.state_dict(), path)
    path.with_name(f"{path.name}.netgrow.yaml").write_bytes(SPEC.read_bytes())
    return net


def pruned(path: Path, method: str, ratio: float) -> models.DigitsConv:
    """The network that netgrow makes of a file, in the real module."""
    settings = METHODS[method][3]
    probes = {"probes": RANDOM_PROBES} if method == "weight-random" else {"probe_data": path.with_name("train.npy")}
    report = netgrow_cli.prune(
        path, layer="*", fraction=ratio, allow_drift=1e9, output=path.with_name("out.pt"), force=True,
        **settings, **probes,
    )  # fmt: skip
    return netgrow_cli.fit(models.DigitsConv(), report.output).eval()


def judged(outputs: Tensor, wanted: Tensor, labels: Tensor) -> Line:
    return {
        "accuracy": float((outputs.argmax(1) == labels).double().mean()),
        "drift": float(((outputs - wanted) ** 2).mean().sqrt() / (wanted**2).mean().sqrt()),
        "largest": float((outputs - wanted).abs().max() / wanted.abs().max()),
    }


@torch.no_grad()
def runs(folder: Path, seeds: int, epochs: int, ratios: tuple[float, ...], peer: str | None) -> Iterator[Line]:
    """One line for each network, share and method."""
    data = digits.split(as_images=True)
    _, _, test, labels = data
    np.save(folder / "train.npy", data[0].numpy())
    np.savez(folder / "data.npz", train_x=data[0].numpy(), train_y=data[1].numpy(), test_x=test.numpy())
    (folder / "ratios.json").write_text(json.dumps(ratios))
    with torch.enable_grad():
        nets = [trained(folder / f"{seed}.pt", data, seed, epochs) for seed in range(seeds)]
    if peer is not None:
        subprocess.run([peer, str(PEER), str(folder)], check=True)
    for seed, net in enumerate(nets):
        wanted = net(test)
        size = sum(each.numel() for each in net.parameters())
        yield {"seed": seed, "method": "none", "ratio": 0.0, "parameters": size, **judged(wanted, wanted, labels)}
        for ratio in ratios:
            for method in METHODS:
                if not method.startswith("tp-"):
                    small = pruned(folder / f"{seed}.pt", method, ratio)
                    outputs, count = small(test), sum(each.numel() for each in small.parameters())
                elif peer is not None:
                    found = np.load(folder / f"peer-{seed}.npz")
                    outputs = torch.from_numpy(found[f"{method} {ratio}"])
                    count = int(found[f"{method} {ratio} parameters"])
                else:
                    continue
                line = {"seed": seed, "method": method, "ratio": ratio, "parameters": count}
                yield {**line, **judged(outputs, wanted, labels)}
        print(f"network {seed}: accuracy {judged(wanted, wanted, labels)['accuracy']:.3f}", file=sys.stderr)


# -- what came of them -------------------------------------------------------------------------------------


def values(lines: list[Line], method: str, ratio: float, key: str) -> Floats:
    return np.array([line[key] for line in lines if (line["method"], line["ratio"]) == (method, ratio)])


def said(found: Floats, percent: bool) -> str:
    """Mean and standard deviation."""
    scale, places, unit = (100.0, 1, "%") if percent else (1.0, 3, "")
    return f"{scale * found.mean():.{places}f} ± {scale * deviation_of(found):.{places}f}{unit}"


def deviation_of(found: Floats) -> float:
    return float(found.std(ddof=1)) if len(found) > 1 else 0.0


def table(lines: list[Line]) -> str:
    """Accuracy and drift at 25%, accuracy at the other shares."""
    ratios = sorted({line["ratio"] for line in lines} - {0.0})
    main = 0.25 if 0.25 in ratios else ratios[0]
    others = [ratio for ratio in ratios if ratio != main]
    head = ["", f"{100 * main:g}%: accuracy", "drift", *(f"{100 * ratio:g}%: accuracy" for ratio in others)]
    rows = [["not pruned", said(values(lines, "none", 0.0, "accuracy"), True), "0", *["" for _ in others]]]
    for method, (name, *_) in METHODS.items():
        if len(values(lines, method, main, "drift")):
            cells = [
                said(values(lines, method, main, "accuracy"), True),
                said(values(lines, method, main, "drift"), False),
            ]
            rows.append([name, *cells, *(said(values(lines, method, ratio, "accuracy"), True) for ratio in others)])
    ruled = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def draw(lines: list[Line], path: Path) -> None:
    """Accuracy and drift over the share that is pruned: means, shaded by their standard deviation."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update(
        {
            "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
            "axes.titlelocation": "left", "axes.grid": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.7,
        }
    )  # fmt: skip
    ratios = np.array(sorted({line["ratio"] for line in lines}))
    figure, axes = plt.subplots(1, 2, figsize=(11.6, 4.4), layout="constrained")
    titles = {"accuracy": "Accuracy on the test images", "drift": "Drift of the outputs, relative (root mean square)"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        axis.set_title(title)
        axis.set_xlabel("units pruned from every layer")
        axis.set_xticks(ratios, [f"{100 * ratio:g}%" for ratio in ratios])
        axis.set_xlim(0.0, ratios[-1])
        if key == "accuracy":
            axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
            axis.set_ylim(0.0, 1.02)
        ends = []
        for method, (name, colour, style, _) in METHODS.items():
            start = values(lines, "none", 0.0, key)
            found = [start, *(values(lines, method, ratio, key) for ratio in ratios[1:])]
            if any(len(each) != len(start) for each in found):
                continue
            mean, deviation = (np.array([of(each) for each in found]) for of in (np.mean, deviation_of))
            axis.plot(ratios, mean, style, color=colour, marker="o", markersize=3, linewidth=1.6)
            axis.fill_between(ratios, mean - deviation, mean + deviation, color=colour, alpha=0.09, linewidth=0)
            ends.append((float(mean[-1]), name, colour))
        if key == "drift":
            axis.set_ylim(bottom=0.0)
            _label(axis, ends)
    count = len(values(lines, "none", 0.0, "drift"))
    figure.suptitle(
        f"{count} networks on digits: mean, standard deviation; nothing trained after pruning", x=0.01, ha="left"
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _label(axis: Any, ends: list[tuple[float, str, str]], between: float = 0.055) -> None:
    """Names at the lines' right ends, kept apart."""
    low, high = axis.get_ylim()
    ends = sorted(ends)
    heights = [(end - low) / (high - low) for end, _, _ in ends]
    for _ in range(300):
        for n in range(len(heights) - 1):
            short = between - (heights[n + 1] - heights[n])
            if short > 0.0:
                heights[n], heights[n + 1] = heights[n] - short / 2, heights[n + 1] + short / 2
    for (_, name, colour), height in zip(ends, heights, strict=True):
        axis.text(1.02, height, name, color=colour, transform=axis.transAxes, va="center")


def write(lines: list[Line]) -> None:
    """Table and picture into the docs."""
    pattern = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
    text = table(lines)
    PAGE.write_text(pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", PAGE.read_text("utf-8")), encoding="utf-8")
    draw(lines, PICTURE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="how many networks")
    parser.add_argument("--peer-python", help="an interpreter that has torch-pruning; by default this one, if it does")
    parser.add_argument("--quick", action="store_true", help="one network, two shares, nothing kept")
    parser.add_argument("--redraw", action="store_true", help="table and picture from the runs that are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    peer = given.peer_python or (sys.executable if importlib.util.find_spec("torch_pruning") else None)
    if given.redraw:
        write([json.loads(line) for line in RESULTS.read_text().splitlines()])
        return 0
    began = time.perf_counter()
    seeds, epochs, ratios = (1, 3, RATIOS[:2]) if given.quick else (given.seeds, EPOCHS, RATIOS)
    with tempfile.TemporaryDirectory() as folder:
        lines = list(runs(Path(folder), seeds, epochs, ratios, peer))
    print(table(lines))
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    if peer is None:
        print("Torch-Pruning was not compared: --peer-python names an interpreter that has it", file=sys.stderr)
    if not given.quick:
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))
        write(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
