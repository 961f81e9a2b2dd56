"""A small network grown twice while it trains, by the command line, against the large one from the start.

    python -m benchmarks.growing               # minutes; goes on where it was interrupted
    python -m benchmarks.growing --redraw      # picture and figures again, from growing.jsonl
    python -m benchmarks.growing --quick       # seconds, to see that it runs

Scikit-learn's digits, turned, shifted, scaled and with noise, so many of them that hardly one is seen twice: what
limits the loss is the width and the time. Two hidden layers double twice, each time by one command on the saved
training state (`netgrow expand` or `split`), from which training resumes with Adam's moments. All runs have the same
budget of compute, counted as 6 x parameters x examples (a multiplication and an addition for each weight forwards,
twice that backwards). Results go to `growing.jsonl` beside this file, one line a run; picture and figures into docs/.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import studying
from benchmarks.studying import Line, Results, Training, digits, netgrow, of, rounded, spread

SEEDS = 6


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Fixed before any run was compared with another one; docs/studies.md says what was tried."""

    widths: tuple[int, ...] = (64, 128, 256)
    grown_at: tuple[float, ...] = (0.1, 0.3)
    """Shares of the budget that are spent when the network grows."""
    steps: int = 4000
    """How many of the large network make the budget."""
    batch: int = 128
    rate: float = 2e-3
    images: int = 2**18
    points: int = 100
    """At so many places along the budget the loss is taken, and at a few more near its beginning."""

    @property
    def budget(self) -> float:
        return cost(self.widths[-1]) * self.batch * self.steps


QUICK = Protocol(steps=40, images=2**11, points=10)


@dataclasses.dataclass(frozen=True)
class Condition:
    """doubles: the command that doubles the hidden layers; large from the start where there is none."""

    doubles: Sequence[str] = ()
    halves: bool = False
    """Whether the rate is halved whenever networks grow."""


EXPAND, SPLIT = ("expand", "--times", "2"), ("split", "--units", "all")
LARGE, RETRAINED = "large from the start", "large, begun at second growth"
CONDITIONS = {
    LARGE: Condition(),
    "grown by expand": Condition(EXPAND),
    "grown by split": Condition(SPLIT),
    "large, rate halved twice": Condition(halves=True),
    "grown by split, rate halved": Condition(SPLIT, halves=True),
}
EARLY = (0.0025, 0.005)
SMOOTH = 5
"""Points that a running mean is taken over: at a constant rate the loss jumps about."""
LOOKED = (0.1, 0.3, 0.5, 1.0)
AIMS = (0.4, 0.25)


def parameters(width: int) -> int:
    return sum(value.numel() for value in studying.models.DigitsMLP(width, width).parameters())


def cost(width: int) -> float:
    """Operations for one example: forwards and backwards."""
    return 6.0 * parameters(width)


@dataclasses.dataclass(frozen=True)
class Data:
    """Images to learn from, and images to take the loss on, which are made of other digits."""

    pixels: Tensor
    labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor

    @staticmethod
    def drawn(images: int) -> Data:
        """The same ones for all runs."""
        train, labels, test, test_labels = digits.split(as_images=True)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(len(train), (images,), generator=generator)
        pixels = torch.cat([varied(train[some], generator) for some in rows.split(4096)])
        return Data(pixels, labels[rows], varied(test.repeat(8, 1, 1, 1), generator), test_labels.repeat(8))

    @torch.no_grad()
    def loss(self, training: Training) -> float:
        return float(F.cross_entropy(training.net(self.test_pixels), self.test_labels))


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each turned by up to 0.4 rad, shifted by up to 1.2 of its 8 pixels, scaled by up to a quarter, with noise."""

    def uniform(most: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * most

    angle, scale = uniform(0.4), 1 + uniform(0.25)
    rows = (
        scale * angle.cos(),
        -scale * angle.sin(),
        uniform(0.3),
        scale * angle.sin(),
        scale * angle.cos(),
        uniform(0.3),
    )
    places = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, places, align_corners=False)
    return (moved + 0.1 * torch.randn(moved.shape, generator=generator)).flatten(1)


def places(protocol: Protocol) -> list[float]:
    """Where along the budget the loss is taken."""
    return [*EARLY, *((n + 1) / protocol.points for n in range(protocol.points))]


@dataclasses.dataclass
class Run:
    """One condition under way. curve: (share of the budget, parameters, loss)."""

    protocol: Protocol
    data: Data
    training: Training
    generator: torch.Generator
    spent: float = 0.0
    curve: list[tuple[float, int, float]] = dataclasses.field(default_factory=list)

    def train(self, until: float) -> None:
        """On, to a share of the budget."""
        width = len(self.training.net.fc1.bias)
        step = cost(width) * self.protocol.batch / self.protocol.budget
        for place in [place for place in places(self.protocol) if self.spent < place <= until + 1e-9]:
            while self.spent + step / 2 <= place:
                rows = torch.randint(len(self.data.pixels), (self.protocol.batch,), generator=self.generator)
                self.training.step(self.data.pixels[rows], self.data.labels[rows])
                self.spent += step
            self.look(place)

    def look(self, place: float) -> None:
        self.curve.append((place, parameters(len(self.training.net.fc1.bias)), self.data.loss(self.training)))

    def grow(self, words: Sequence[str], seed: int, folder: Path) -> None:
        """The hidden layers double: the loss before and after are both in the curve."""
        command, *options = words
        layers = [word for layer in studying.HIDDEN for word in ("--layer", layer)]
        path = self.training.save(folder / "ckpt.pt")
        common = ["--spec", studying.SPEC, "--seed", seed, "-o", folder / "grown.pt", "--force"]
        netgrow(command, path, *layers, *options, *common)
        self.training = Training.resumed(folder / "grown.pt")
        self.look(self.curve[-1][0])


def run(condition: str, seed: int, protocol: Protocol, data: Data, folder: Path) -> Line:
    """Train to the end of the budget. The first stage is the same for all that grow, and so is its seed."""
    kind = CONDITIONS[condition]
    width = protocol.widths[0 if kind.doubles else -1]
    running = Run(protocol, data, Training.begun(width, protocol.rate, seed), torch.Generator().manual_seed(seed))
    running.look(0.0)
    for number, until in enumerate(protocol.grown_at):
        running.train(until)
        if kind.doubles:
            running.grow(kind.doubles, seed * 10 + number, folder)
        if kind.halves:
            running.training.slow_down(2)
    running.train(1.0)
    shares, sizes, losses = zip(*running.curve, strict=True)
    return {"at": rounded(shares), "parameters": list(sizes), "loss": rounded(losses)}


def measure(protocol: Protocol, results: Results, seeds: int) -> None:
    """Run what is missing."""
    missing = list(results.missing(list(CONDITIONS), seeds))
    data = Data.drawn(protocol.images) if missing else None
    with tempfile.TemporaryDirectory() as folder:
        for condition, seed in missing:
            began = time.process_time()
            assert data is not None
            found = run(condition, seed, protocol, data, Path(folder))
            results.add(condition, seed, time.process_time() - began, found)


# -- what came out -------------------------------------------------------------------------------------

Curve = list[tuple[float, float]]


def curves(lines: Sequence[Line], protocol: Protocol) -> dict[str, list[Curve]]:
    """By condition, a curve for each seed. Training from scratch is the large network's, begun later."""
    found = {
        name: [list(zip(line["at"], line["loss"], strict=True)) for line in of(lines, name)] for name in CONDITIONS
    }
    return {**found, RETRAINED: [later(curve, protocol) for curve in found[LARGE]]}


def later(curve: Curve, protocol: Protocol) -> Curve:
    """A curve as it would be had it begun when networks grew for the last time."""
    wait = protocol.grown_at[-1]
    return [(round(at + wait, 6), loss) for at, loss in curve if at + wait <= 1 + 1e-9]


def steady(found: Mapping[str, Sequence[Curve]], protocol: Protocol) -> dict[str, list[Curve]]:
    """Running means over SMOOTH of the even points; where a network grew, the loss is counted once."""
    smooth = {name: [smoothed(curve) for curve in several] for name, several in found.items() if name != RETRAINED}
    return {**smooth, RETRAINED: [later(curve, protocol) for curve in smooth[LARGE]]}


def smoothed(curve: Curve) -> Curve:
    even = sorted({at: loss for at, loss in curve if at > 0 and at not in EARLY}.items())
    means = studying.running_means([loss for _, loss in even], SMOOTH)
    return [(at, mean) for (at, _), mean in zip(even, means, strict=True)]


def relative(found: Mapping[str, Sequence[Curve]]) -> dict[str, list[Curve]]:
    """Every curve as a ratio to the large network's of the same seed, wherever both have a loss."""
    return {
        name: [ratio(curve, dict(base)) for curve, base in zip(several, found[LARGE], strict=True)]
        for name, several in found.items()
    }


def ratio(curve: Curve, base: Mapping[float, float]) -> Curve:
    return [(at, loss / base[at]) for at, loss in curve if at in base]


def first_below(curve: Curve, aim: float) -> float | None:
    """The share of the budget at which a loss is reached."""
    return next((at for at, loss in curve if loss <= aim), None)


def changes(lines: Sequence[Line]) -> Iterator[tuple[float, float]]:
    """The loss just before and just after each growth."""
    for line in lines:
        for n, (before, after) in enumerate(zip(line["parameters"], line["parameters"][1:], strict=False)):
            if after != before:
                yield line["loss"][n], line["loss"][n + 1]


def figures(lines: Sequence[Line], protocol: Protocol) -> str:
    """The table: the loss along the budget, and when a loss is reached."""
    found = steady(curves(lines, protocol), protocol)
    rows = []
    for condition, several in found.items():
        losses = [
            spread([dict(curve)[at] for curve in several], 3) if several[0][0][0] <= at else "not begun"
            for at in LOOKED
        ]
        rows.append([condition, *losses, *(reached(several, aim) for aim in AIMS)])
    head = [f"{len(found[LARGE])} seeds, mean ± standard deviation"]
    head += [f"test loss at {at:.0%} of the budget" for at in LOOKED]
    head += [f"reaches {aim:g} at (seeds that do)" for aim in AIMS]
    largest = max(abs(after - before) / before for before, after in changes(lines))
    sizes = ", ".join(f"{parameters(width):,}" for width in protocol.widths)
    return "\n\n".join(
        [
            studying.table(head, rows),
            f"Losses are means over the last {SMOOTH / protocol.points:.0%} of the budget, which is "
            f"{protocol.budget / 1e9:.0f} billion operations. Parameters: {sizes}. Largest difference of the loss just "
            f"before and just after a change: {largest:.1g} of it (as kept, to five digits).",
        ]
    )


def after(several: Sequence[Curve], at: float) -> str:
    """The loss at a share of the budget, over the seeds."""
    begun = several[0][0][0] <= at
    return spread([dict(curve)[at] for curve in several], 3) if begun else "not begun"


def reached(several: Sequence[Curve], aim: float) -> str:
    """When a loss is first reached, over the seeds in which it is."""
    there = [place for place in (first_below(curve, aim) for curve in several) if place is not None]
    return f"{spread(there, 0, percent=True)} ({len(there)} of {len(several)})" if there else "never"


def draw(lines: list[Line], protocol: Protocol, path: Path) -> None:
    """The picture. (matplotlib is not needed for anything else.)"""
    from benchmarks.study_pictures import draw_growing

    draw_growing(lines, protocol, path)


STUDY = studying.Study("growing", list(CONDITIONS), SEEDS, Protocol(), QUICK, measure, figures, draw)

if __name__ == "__main__":
    sys.exit(STUDY.main(__doc__))
