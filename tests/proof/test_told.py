"""What runs networks says beforehand how much there is to do, and tells of all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import netgrow_cli
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.jobs.scoring import scored
from netgrow_cli.jobs.verification import compare_checkpoints
from netgrow_cli.proof import probes
from netgrow_cli.proof.permutation import certify
from tests.cli.driver import SAMPLES, SPECS


@dataclasses.dataclass
class Stage:
    name: str
    total: int | None
    done: int = 0


@dataclasses.dataclass
class Heard:
    """A progress that remembers."""

    stages: list[Stage] = dataclasses.field(default_factory=list)

    def stage(self, name: str, total: int | None) -> None:
        self.stages.append(Stage(name, total))

    def advance(self, count: int) -> None:
        self.stages[-1].done += count


def _verified(path: Path, options: Options, folder: Path) -> None:
    compare_checkpoints(path, path, options)


def _checked(path: Path, options: Options, folder: Path) -> None:
    with opened(path, options) as job:
        certify(job.network, job.probes(options.probes or 1, 0), seed=0, dtype="float64", tolerance=1e-10)


def _scored(by: str) -> Callable[[Path, Options, Path], None]:
    def run(path: Path, options: Options, folder: Path) -> None:
        with opened(path, options) as job:
            scored(job, by, [info.width.id for info in job.topology.widths.values() if info.frozen is None], None)

    return run


def _compensated(path: Path, options: Options, folder: Path) -> None:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Options)}
    given |= {"output": folder / "out.pt", "allow_drift": 9.0}
    netgrow_cli.prune(path, layer="fc1", units=[0], compensate=True, **given)


CASES: dict[str, tuple[Callable[[Path, Options, Path], None], list[str]]] = {
    "verify": (_verified, ["comparing"]),
    "check": (_checked, ["comparing"]),
    "scores by activation": (_scored("activation"), ["measuring"]),
    "scores by taylor": (_scored("taylor"), ["measuring"]),
    "prune with compensation": (
        _compensated,
        ["measuring", "refitting", "measuring", "writing", "folding back", "proving", "comparing"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_announced_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "BATCH", 3)
    run, stages = CASES[name]
    heard = Heard()
    run(SAMPLES / "digits_mlp.pt", Options(spec=SPECS / "digits_mlp.yaml", probes=10, progress=heard), tmp_path)
    assert [stage.name for stage in heard.stages] == stages
    for stage in heard.stages:
        assert stage.total is None or stage.done == stage.total > 0, stage


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (3, 1), (4, 2), (9, 3)])
def test_batches_are_counted(rows: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "BATCH", 3)
    with opened(SAMPLES / "digits_mlp.pt", Options(spec=SPECS / "digits_mlp.yaml")) as job:
        drawn = job.probes(rows, 0)
        assert len(drawn.starts) == len(list(drawn.batches(np.dtype(np.float64)))) == count
