"""What the studies of training share: the command line on a checkpoint, results kept by seed, figures in the docs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn

from netgrow_cli import cli

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "sample_checkpoints")]

import digits  # noqa: E402, F401
import models  # noqa: E402

SPEC = ROOT / "specs" / "digits_mlp.yaml"
HIDDEN = ("fc1", "fc2")
PAGE = ROOT / "docs" / "studies.md"
PICTURES = ROOT / "docs" / "pictures"

Line = dict[str, Any]
Protocol = TypeVar("Protocol")


# -- a network in training, and the command line on its checkpoint -----------------------------------


@dataclasses.dataclass(frozen=True)
class Training:
    """A network and its optimizer, as a checkpoint has them."""

    net: models.DigitsMLP
    optimizer: torch.optim.Optimizer

    @staticmethod
    def begun(width: int, rate: float, seed: int) -> Training:
        """Two hidden layers of a width, freshly initialised, under Adam."""
        torch.manual_seed(seed)
        return Training.of(models.DigitsMLP(width, width), rate)

    @staticmethod
    def of(net: models.DigitsMLP, rate: float) -> Training:
        return Training(net, torch.optim.Adam(net.named_parameters(), lr=rate, fused=True))

    def step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """One update; the outputs before it."""
        self.optimizer.zero_grad()
        outputs: Tensor = self.net(pixels)
        nn.functional.cross_entropy(outputs, labels).backward()
        self.optimizer.step()
        return outputs.detach()

    def slow_down(self, times: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] /= times

    def save(self, path: Path) -> Path:
        torch.save({"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}, path)
        return path

    @staticmethod
    def resumed(path: Path) -> Training:
        """From a checkpoint, at the widths that it has. Everything of the optimizer is the file's, the rate too."""
        kept = torch.load(path, weights_only=True)
        net = models.DigitsMLP(*(len(kept["model"][f"{layer}.bias"]) for layer in HIDDEN))
        net.load_state_dict(kept["model"])
        training = Training.of(net, rate=0.0)
        training.optimizer.load_state_dict(kept["optimizer"])
        return training


class CommandFailed(Exception):
    """A command of netgrow's ended with another exit code than 0."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"exit code {code}: {said}")
        self.code = code


def netgrow(*words: object) -> Line:
    """Run `netgrow WORDS --json` and give its report.

    It is the program's own entry point, called in this process: importing torch for each of hundreds of commands
    would take longer than the study.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["netgrow", *map(str, words), "--json"]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
    if code != 0:
        raise CommandFailed(code, err.getvalue().strip())
    report: Line = json.loads(out.getvalue())
    return report


# -- results -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Results:
    """Lines of a file, one for each condition and seed, all made under one protocol."""

    path: Path
    protocol: Mapping[str, Any]

    def lines(self) -> list[Line]:
        """What is there. Results of another protocol are an error: means over both would mean nothing."""
        if not self.path.exists():
            return []
        found = [json.loads(text) for text in self.path.read_text("utf-8").splitlines()]
        for line in found:
            if line["protocol"] != json.loads(json.dumps(self.protocol)):
                sys.exit(f"{self.path} has results of another protocol; remove it to run the study anew")
        return found

    def complete(self, conditions: Sequence[str]) -> list[Line]:
        """Those of the seeds that all conditions have been run with."""
        found = self.lines()
        seeds = [{line["seed"] for line in of(found, condition)} for condition in conditions]
        there = set.intersection(*seeds)
        if not there:
            sys.exit(f"{self.path} has no seed yet that all conditions have been run with")
        return [line for line in found if line["seed"] in there]

    def missing(self, conditions: Sequence[str], seeds: int) -> Iterator[tuple[str, int]]:
        """What has yet to be run, seed by seed, so that an interrupted study has whole seeds."""
        there = {(line["condition"], line["seed"]) for line in self.lines()}
        for seed in range(seeds):
            for condition in conditions:
                if (condition, seed) not in there:
                    yield condition, seed

    def add(self, condition: str, seed: int, seconds: float, found: Mapping[str, Any]) -> None:
        line = {"condition": condition, "seed": seed, "seconds": round(seconds, 1), **found, "protocol": self.protocol}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"seed {seed}, {condition}: {seconds:.0f} s", file=sys.stderr)


def of(lines: Sequence[Line], condition: str) -> list[Line]:
    """The runs of one condition, by seed."""
    return sorted((line for line in lines if line["condition"] == condition), key=lambda line: int(line["seed"]))


def rounded(values: Sequence[float], places: int = 5) -> list[float]:
    """With so many significant digits, which is more than differs from seed to seed."""
    return [float(f"{value:.{places}g}") for value in values]


def running_means(values: Sequence[float], over: int) -> list[float]:
    """Means over so many values up to each; over fewer at the beginning."""
    return [statistics.mean(values[max(n - over, 0) : n]) for n in range(1, len(values) + 1)]


def spread(values: Sequence[float], places: int = 2, percent: bool = False) -> str:
    """Mean and standard deviation over the seeds, as a table shows them."""
    scaled = [100 * value if percent else value for value in values]
    deviation = statistics.stdev(scaled) if len(scaled) > 1 else 0.0
    sign = "%" if percent else ""
    return f"{statistics.mean(scaled):.{places}f}{sign} ± {deviation:.{places}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_between(page: Path, name: str, text: str) -> None:
    """Put text into a page, between `<!-- name -->` and the next `<!-- end -->`."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    before = page.read_text("utf-8")
    if not pattern.search(before):
        sys.exit(f"{page} has no place <!-- {name} --> for the figures")
    page.write_text(pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", before), encoding="utf-8")


# -- options -------------------------------------------------------------------------------------------


def arguments(description: str | None, seeds: int) -> argparse.Namespace:
    """What every study is asked on the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="how many runs of each condition")
    parser.add_argument("--redraw", action="store_true", help="picture and figures from the results that are kept")
    parser.add_argument("--quick", action="store_true", help="a short one, to see that all of it runs; keeps nothing")
    return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Study(Generic[Protocol]):
    """A study that is run by one command.

    name: of its results, its picture, and its table in the docs. protocol: how it is run; quick: in seconds, on nothing
    that is kept. measure: adds to the results what they lack of so many seeds. figures: the table. draw: the picture.
    """

    name: str
    conditions: Sequence[str]
    seeds: int
    protocol: Protocol
    quick: Protocol
    measure: Callable[[Protocol, Results, int], object]
    figures: Callable[[list[Line], Protocol], str]
    draw: Callable[[list[Line], Protocol, Path], None]

    @property
    def kept(self) -> Path:
        """Where its results are kept."""
        return ROOT / "benchmarks" / f"{self.name}.jsonl"

    @property
    def picture(self) -> Path:
        """Where its picture is."""
        return PICTURES / f"{self.name}.png"

    def main(self, description: str | None) -> int:
        """Run it, as the command line says."""
        given = arguments(description, self.seeds)
        torch.set_num_threads(1)
        if given.quick:
            with tempfile.TemporaryDirectory() as folder:
                results = Results(Path(folder) / f"{self.name}.jsonl", dataclasses.asdict(self.quick))
                self.measure(self.quick, results, 1)
                print(self.figures(results.lines(), self.quick))
            return 0
        results = Results(self.kept, dataclasses.asdict(self.protocol))
        if not given.redraw:
            self.measure(self.protocol, results, given.seeds)
        lines = results.complete(list(self.conditions))
        text = self.figures(lines, self.protocol)
        print(text)
        write_between(PAGE, self.name, text)
        self.draw(lines, self.protocol, self.picture)
        return 0
