"""The pictures of the studies: means over the seeds, shaded by their standard deviation, labels at the lines' ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from numpy.typing import NDArray

from benchmarks import growing, recycling
from benchmarks.studying import Line, of, running_means

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# Okabe and Ito's colours, which people tell apart however they see colours; the order is that of the conditions.
GREY, BLUE, ORANGE, GREEN, PURPLE = "#5a5a5a", "#0072b2", "#d55e00", "#009e73", "#b05a8c"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.7,
}
SIZE, DPI = (8.4, 6.4), 150
BETWEEN = 0.052
"""Labels at the right keep this distance, as a share of the axis' height."""


class Panel:
    """One pair of axes whose lines are labelled at their right ends."""

    def __init__(self, axes: Axes, title: str, quantity: str) -> None:
        self.axes = axes
        self.ends: list[tuple[float, str, str]] = []
        axes.set_title(title)
        axes.set_ylabel(quantity)

    def line(self, x: Floats, runs: Floats, colour: str, label: str, style: str = "-", thickness: float = 1.6) -> None:
        """Mean and standard deviation of runs (one a row)."""
        mean = runs.mean(0)
        deviation = runs.std(0, ddof=1) if len(runs) > 1 else np.zeros_like(mean)
        self.axes.plot(x, mean, style, color=colour, linewidth=thickness)
        self.axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.16, linewidth=0)
        self.ends.append((float(mean[-1]), label, colour))

    def label(self) -> None:
        """Write the labels beside the lines' ends, apart from each other, once the axes' limits are known."""
        to_axes = self.axes.transData + self.axes.transAxes.inverted()
        right = self.axes.get_xlim()[1]
        wanted = sorted((float(to_axes.transform((right, end))[1]), label, colour) for end, label, colour in self.ends)
        for (_, label, colour), height in zip(wanted, apart([height for height, _, _ in wanted]), strict=True):
            self.axes.text(1.015, height, label, color=colour, transform=self.axes.transAxes, va="center")


def apart(heights: Sequence[float]) -> list[float]:
    """Rising heights moved as little as is needed for them to keep BETWEEN and to stay on the axis."""
    found = list(heights)
    for _ in range(200):
        for n in range(len(found) - 1):
            short = BETWEEN - (found[n + 1] - found[n])
            if short > 1e-9:
                found[n] -= short / 2
                found[n + 1] += short / 2
        found = [min(max(height, 0.0), 1.0) for height in found]
    return found


def two_panels() -> tuple[Figure, Axes, Axes]:
    """One above the other, with one x-axis."""
    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=SIZE, layout="constrained")
    return figure, upper, lower


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    # (No date and no version, so that the same results give the same file.)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def rows(lines: Sequence[Line], condition: str, key: str) -> Floats:
    return np.array([line[key] for line in of(lines, condition)], dtype=np.float64)


# -- recycling -----------------------------------------------------------------------------------------

SMOOTH = 5


def draw_recycling(lines: Sequence[Line], protocol: recycling.Protocol, path: Path) -> None:
    """Dead share and test accuracy over the tasks."""
    conditions = list(recycling.CONDITIONS)
    colours = dict(zip(conditions, (GREY, BLUE, GREEN, PURPLE, ORANGE), strict=True))
    with mpl.rc_context(STYLE):
        figure, upper, lower = two_panels()
        dead = Panel(upper, "Units that are zero on all training images of the task", "dead, % of hidden units")
        right = Panel(lower, f"At the end of each task, running mean over {SMOOTH} tasks", "test accuracy, %")
        for condition in conditions:
            if not of(lines, condition):
                continue
            style = "-" if condition == "plain" or recycling.CONDITIONS[condition].recycle is not None else "--"
            x, shares = with_changes(rows(lines, condition, "dead"), rows(lines, condition, "after"), protocol.epochs)
            # (What the last recycling leaves is not trained any more.)
            dead.line(x[:-1], 100 * shares[:, :-1], colours[condition], condition, style, thickness=1.1)
            accuracy = np.array([running_means(line["accuracy"], SMOOTH) for line in of(lines, condition)])
            right.line(np.arange(1.0, protocol.tasks + 1), 100 * accuracy, colours[condition], condition, style)
        upper.set_ylim(0, None)
        lower.set_xlim(0, protocol.tasks)
        lower.set_xlabel("tasks (units are recycled at the end of each)")
        for panel in (dead, right):
            panel.label()
        save(figure, path)


def with_changes(dead: Floats, after: Floats, epochs: int) -> tuple[Floats, Floats]:
    """The share after each epoch, and once more at the end of each task, when units have been recycled."""
    x: list[float] = []
    columns = []
    for task in range(after.shape[1]):
        for epoch in range(epochs):
            x.append(task + (epoch + 1) / epochs)
            columns.append(dead[:, task * epochs + epoch])
        x.append(task + 1.0)
        columns.append(after[:, task])
    return np.array(x), np.stack(columns, axis=1)


# -- growing -------------------------------------------------------------------------------------------


def draw_growing(lines: Sequence[Line], protocol: growing.Protocol, path: Path) -> None:
    """Loss over compute, and what it is of the large network's at the same compute. (Halved rates: in the table.)"""
    found = growing.curves(lines, protocol)
    ratios = growing.relative(growing.steady(found, protocol))
    pictured = [name for name in found if name == growing.RETRAINED or not growing.CONDITIONS[name].halves]
    colours = dict(zip(pictured, (GREY, BLUE, ORANGE, PURPLE), strict=True))
    scale = protocol.budget / 1e9
    with mpl.rc_context(STYLE):
        figure, upper, lower = two_panels()
        loss = Panel(upper, "Loss on held-out digits", "test cross entropy, nats")
        ratio = Panel(
            lower, "Relative to the large network from the start at the same compute (running means)", "ratio of losses"
        )
        upper.set_yscale("log")
        for condition, colour in colours.items():
            style = "--" if condition == growing.RETRAINED else "-"
            for panel, curves in ((loss, found), (ratio, ratios)):
                x = np.array([at for at, _ in curves[condition][0]]) * scale
                runs = np.array([[value for _, value in curve] for curve in curves[condition]])
                panel.line(x, runs, colour, condition, style)
        lower.set_xlim(0, scale)
        lower.set_xlabel("training compute, billions of operations (6 × parameters × examples)")
        upper.set_ylim(None, 2.5)
        named_ticks(upper, (0.2, 0.3, 0.5, 1.0, 2.0))
        lower.set_ylim(0.4, 2.0)
        marks(upper, lower, protocol)
        for panel in (loss, ratio):
            panel.label()
        save(figure, path)


def marks(upper: Axes, lower: Axes, protocol: growing.Protocol) -> None:
    """Where the networks grow, and from which width to which."""
    for at, before, after in zip(protocol.grown_at, protocol.widths, protocol.widths[1:], strict=False):
        x = at * protocol.budget / 1e9
        for axes in (upper, lower):
            axes.axvline(x, color="#999999", linewidth=0.8, linestyle=":")
        upper.annotate(
            f"{before} → {after} units",
            (x, 1),
            (3, -9),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            color="#555555",
        )


def named_ticks(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis that spans little more than one power of ten says its numbers."""
    axes.yaxis.set_major_locator(mpl.ticker.FixedLocator(list(values)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
