"""Dead units recycled while a network trains, by the command line, against training that lets them die.

    python -m benchmarks.recycling               # minutes; goes on where it was interrupted
    python -m benchmarks.recycling --redraw      # picture and figures again, from recycling.jsonl
    python -m benchmarks.recycling --quick       # seconds, to see that it runs

Scikit-learn's digits, one task after another: each has its own permutation of the 64 pixels and of the 10 labels, and
the network is trained on from task to task (Adam, a high learning rate, which kills ReLUs). At the end of every task
the training state is saved, `netgrow recycle` is run on the file with the task's images as probes, and training
resumes from the result: weights and Adam's moments. Results go to `recycling.jsonl` beside this file, one line a run;
picture and figures into docs/.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import studying
from benchmarks.studying import Line, Results, Training, digits, netgrow, of, rounded, spread

SEEDS = 6


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Fixed before any run was compared with another one; docs/studies.md says what was tried."""

    tasks: int = 60
    epochs: int = 5
    batch: int = 64
    rate: float = 5e-3
    width: int = 64
    last: int = 10
    """The figures in the table are means over so many tasks at the end."""


QUICK = Protocol(tasks=2, epochs=3, last=1)


@dataclasses.dataclass(frozen=True)
class Condition:
    """recycle: the options of `netgrow recycle`, None where it is not run. wider, slower: factors of width and rate."""

    recycle: Sequence[str] | None = None
    wider: int = 1
    slower: int = 1


FRESH = "recycled, fresh"
CONDITIONS = {
    "plain": Condition(),
    "recycled, copies": Condition(recycle=()),
    FRESH: Condition(recycle=("--fresh",)),
    "plain, twice as wide": Condition(wider=2),
    "plain, a fifth of the rate": Condition(slower=5),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One permutation of pixels and labels."""

    pixels: Tensor
    labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor

    @staticmethod
    def drawn(data: digits.Split, generator: torch.Generator) -> Task:
        pixels = torch.randperm(data[0].shape[1], generator=generator)
        labels = torch.randperm(10, generator=generator)
        return Task(data[0][:, pixels], labels[data[1]], data[2][:, pixels], labels[data[3]])


@torch.no_grad()
def dead_units(training: Training, task: Task) -> tuple[Tensor, Tensor]:
    """For both hidden layers, which units are zero on all training images of a task."""
    first = F.relu(training.net.fc1(task.pixels))
    second = F.relu(training.net.fc2(first))
    return (first <= 0.0).all(0), (second <= 0.0).all(0)


def dead_share(training: Training, task: Task) -> float:
    return float(torch.cat(dead_units(training, task)).double().mean())


@torch.no_grad()
def accuracy(training: Training, task: Task) -> float:
    return float((training.net(task.test_pixels).argmax(1) == task.test_labels).double().mean())


def recycled(training: Training, task: Task, options: Sequence[str], seed: int, folder: Path) -> Training | None:
    """The training as it goes on from the recycled checkpoint; None where netgrow refuses (a layer died as a whole)."""
    training.save(folder / "ckpt.pt")
    np.save(folder / "images.npy", task.pixels.numpy())
    layers = [word for layer in studying.HIDDEN for word in ("--layer", layer)]
    words = [*layers, "--spec", studying.SPEC, "--probe-data", folder / "images.npy", "--seed", seed]
    try:
        netgrow("recycle", folder / "ckpt.pt", *words, *options, "-o", folder / "next.pt", "--force")
    except studying.CommandFailed as failed:
        if failed.code != 3:
            raise
        return None
    return Training.resumed(folder / "next.pt")


def run(condition: str, seed: int, protocol: Protocol, data: digits.Split, folder: Path) -> Line:
    """Train through all tasks. dead: after each epoch; after: once more, when the task's units are recycled."""
    kind = CONDITIONS[condition]
    training = Training.begun(protocol.width * kind.wider, protocol.rate / kind.slower, seed)
    generator = torch.Generator().manual_seed(seed)  # the same tasks and batches in every condition
    found: dict[str, list[float]] = {"dead": [], "after": [], "accuracy": [], "online": []}
    refused = 0
    for number in range(protocol.tasks):
        task = Task.drawn(data, generator)
        right = []
        for _ in range(protocol.epochs):
            for rows in torch.randperm(len(task.pixels), generator=generator).split(protocol.batch)[:-1]:
                outputs = training.step(task.pixels[rows], task.labels[rows])
                right.append(float((outputs.argmax(1) == task.labels[rows]).double().mean()))
            found["dead"].append(dead_share(training, task))
        found["accuracy"].append(accuracy(training, task))
        found["online"].append(statistics.mean(right))
        if kind.recycle is not None:
            going_on = recycled(training, task, kind.recycle, seed * protocol.tasks + number, folder)
            refused += going_on is None
            training = going_on or training
        found["after"].append(dead_share(training, task))
    return {name: rounded(values) for name, values in found.items()} | {"refused": refused}


def measure(protocol: Protocol, results: Results, seeds: int) -> None:
    """Run what is missing."""
    data = digits.split()
    with tempfile.TemporaryDirectory() as folder:
        for condition, seed in results.missing(list(CONDITIONS), seeds):
            began = time.process_time()
            found = run(condition, seed, protocol, data, Path(folder))
            results.add(condition, seed, time.process_time() - began, found)


def figures(lines: Sequence[Line], protocol: Protocol) -> str:
    """The table: means over the last tasks, then over the seeds."""
    last = protocol.last
    plain = [statistics.mean(line["accuracy"][-last:]) for line in of(lines, "plain")]
    rows = []
    for condition in CONDITIONS:
        runs = of(lines, condition)
        ends = [statistics.mean(line["accuracy"][-last:]) for line in runs]
        over = [100 * (end - base) for end, base in zip(ends, plain, strict=True)]
        better = f"{spread(over, 1)} ({sum(points > 0 for points in over)} of {len(over)})"
        rows.append(
            [
                condition,
                spread([statistics.mean(line["dead"][-last * protocol.epochs :]) for line in runs], 1, percent=True),
                spread([statistics.mean(line["accuracy"][:last]) for line in runs], 1, percent=True),
                spread(ends, 1, percent=True),
                "" if condition == "plain" else better,
                spread([statistics.mean(line["online"][-last:]) for line in runs], 1, percent=True),
            ]
        )
    head = [
        f"{len(plain)} seeds, mean ± standard deviation",
        f"dead units, last {last} tasks",
        f"test accuracy, first {last} tasks",
        f"test accuracy, last {last} tasks",
        "points over plain, same seed (higher in)",
        f"accuracy while learning, last {last}",
    ]
    return studying.table(head, rows)


def draw(lines: list[Line], protocol: Protocol, path: Path) -> None:
    """The picture. (matplotlib is not needed for anything else.)"""
    from benchmarks.study_pictures import draw_recycling

    draw_recycling(lines, protocol, path)


STUDY = studying.Study("recycling", list(CONDITIONS), SEEDS, Protocol(), QUICK, measure, figures, draw)

if __name__ == "__main__":
    sys.exit(STUDY.main(__doc__))
