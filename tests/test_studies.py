"""The studies of training: short ones run, the change is exact at its moment, the docs show the kept results."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from benchmarks import growing, recycling, studying
from benchmarks.studying import Results, Training
from tests.cli.driver import environment

RECYCLED = {name: kind.recycle for name, kind in recycling.CONDITIONS.items() if kind.recycle is not None}


@pytest.fixture(scope="module")
def data() -> studying.digits.Split:
    return studying.digits.split()


@pytest.fixture
def dying(data: studying.digits.Split) -> tuple[Training, recycling.Task]:
    """A network some updates into a task, with units that died in both layers."""
    task = recycling.Task.drawn(data, torch.Generator().manual_seed(1))
    training = Training.begun(32, 5e-3, seed=1)
    for _ in range(5):
        training.step(task.pixels[:256], task.labels[:256])
    with torch.no_grad():
        training.net.fc1.bias[:5] = -100.0
        training.net.fc2.bias[3:10] = -100.0
    for _ in range(5):
        training.step(task.pixels[:256], task.labels[:256])
    return training, task


@pytest.mark.parametrize("condition", RECYCLED)
def test_recycling_wakes_units_and_changes_nothing_else(
    condition: str, dying: tuple[Training, recycling.Task], tmp_path: Path
) -> None:
    before, task = dying
    first, second = recycling.dead_units(before, task)
    assert first[:5].all() and second[3:10].all()
    after = recycling.recycled(before, task, RECYCLED[condition], seed=3, folder=tmp_path)
    woken = recycling.dead_share(before, task) - recycling.dead_share(after, task)
    # A fresh unit may be dead from its birth; a copy of a live one is not.
    assert woken >= 10 / 64 and (condition == recycling.FRESH or recycling.dead_share(after, task) == 0.0)
    with torch.no_grad():
        torch.testing.assert_close(after.net(task.pixels), before.net(task.pixels), atol=1e-5, rtol=1e-5)
    old, new = (training.optimizer.state_dict() for training in (before, after))
    assert new["param_groups"][0]["lr"] == old["param_groups"][0]["lr"] == 5e-3
    for identity, state in old["state"].items():
        assert new["state"][identity]["step"] == state["step"] == 10
    # What the live units read stays, to the bit; the moments of those that share with nobody as well.
    torch.testing.assert_close(after.net.fc1.weight[~first], before.net.fc1.weight[~first], atol=0, rtol=0)
    alike = (after.net.fc1.weight[:, None] == after.net.fc1.weight).all(2).sum(1)
    alone = ~first & (alike == 1)
    assert alone.any()
    torch.testing.assert_close(new["state"][0]["exp_avg"][alone], old["state"][0]["exp_avg"][alone], atol=0, rtol=0)
    after.step(task.pixels, task.labels)
    assert all(bool(value.isfinite().all()) for value in after.net.state_dict().values())


def test_a_layer_that_died_as_a_whole_stays_and_training_goes_on(
    dying: tuple[Training, recycling.Task], tmp_path: Path
) -> None:
    training, task = dying
    with torch.no_grad():
        training.net.fc2.bias[:] = -100.0
    assert recycling.recycled(training, task, (), seed=0, folder=tmp_path) is None


def test_the_entry_point_writes_what_the_program_writes(dying: tuple[Training, recycling.Task], tmp_path: Path) -> None:
    training, task = dying
    recycling.recycled(training, task, (), seed=7, folder=tmp_path)
    words = ["recycle", "ckpt.pt", "--layer", "fc1", "--layer", "fc2", "--probe-data", "images.npy", "--seed", "7"]
    program = [sys.executable, "-m", "netgrow_cli", *words, "--spec", str(studying.SPEC), "-o", "program.pt"]
    path = str(studying.ROOT)
    subprocess.run(program, cwd=tmp_path, env=environment(PYTHONPATH=path), check=True, capture_output=True)
    ours, theirs = (torch.load(tmp_path / name, weights_only=True) for name in ("next.pt", "program.pt"))
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())
    assert all(
        torch.equal(value, theirs["optimizer"]["state"][identity][key])
        for identity, state in ours["optimizer"]["state"].items()
        for key, value in state.items()
    )


def test_a_short_study_of_recycling(tmp_path: Path) -> None:
    protocol = recycling.QUICK
    results = Results(tmp_path / "kept.jsonl", dataclasses.asdict(protocol))
    recycling.measure(protocol, results, seeds=1)
    lines = {line["condition"]: line for line in results.lines()}
    assert set(lines) == set(recycling.CONDITIONS)
    plain = lines["plain"]
    assert plain["after"] == plain["dead"][protocol.epochs - 1 :: protocol.epochs] and max(plain["after"]) > 0.0
    for condition in RECYCLED:
        assert lines[condition]["refused"] == 0
        left = 0.0 if condition != recycling.FRESH else 0.05  # a fresh unit may be dead from its birth
        assert max(lines[condition]["after"]) <= left
        # Until the first recycling it is the plain run.
        assert lines[condition]["dead"][: protocol.epochs] == plain["dead"][: protocol.epochs]
        assert lines[condition]["accuracy"][0] == plain["accuracy"][0]
    assert recycling.figures(results.lines(), protocol).count("\n| ") == len(lines) + 1


def test_a_short_study_of_growing(tmp_path: Path) -> None:
    protocol = growing.QUICK
    results = Results(tmp_path / "kept.jsonl", dataclasses.asdict(protocol))
    growing.measure(protocol, results, seeds=1)
    lines = {line["condition"]: line for line in results.lines()}
    assert set(lines) == set(growing.CONDITIONS)
    sizes = [growing.parameters(width) for width in protocol.widths]
    grown = [name for name, kind in growing.CONDITIONS.items() if kind.doubles]
    for condition in grown:
        line = lines[condition]
        assert sorted(set(line["parameters"])) == sizes and line["parameters"] == sorted(line["parameters"])
        assert line["at"] == sorted(line["at"]) and [line["at"].count(at) for at in protocol.grown_at] == [2, 2]
    assert set(lines[growing.LARGE]["parameters"]) == {sizes[-1]}
    found = list(growing.changes(results.lines()))
    assert len(found) == 2 * len(grown) == 6
    for before, after in found:
        assert after == pytest.approx(before, rel=2e-5)  # losses are kept to five digits
    assert growing.LARGE in growing.figures(results.lines(), protocol)


def test_results_go_on_where_they_ended_and_do_not_mix(tmp_path: Path) -> None:
    results = Results(tmp_path / "kept.jsonl", {"rate": 1.0})
    results.add("a", 0, 1.0, {"loss": [1.0]})
    assert list(results.missing(["a", "b"], 2)) == [("b", 0), ("a", 1), ("b", 1)]
    with pytest.raises(SystemExit, match="no seed yet"):
        results.complete(["a", "b"])
    results.add("b", 0, 1.0, {"loss": [2.0]})
    results.add("a", 1, 1.0, {"loss": [3.0]})
    assert [line["loss"] for line in results.complete(["a", "b"])] == [[1.0], [2.0]]
    with pytest.raises(SystemExit, match="another protocol"):
        Results(results.path, {"rate": 2.0}).lines()


@pytest.mark.parametrize("study", [recycling, growing])
def test_the_docs_show_the_kept_results(study: object) -> None:
    protocol = study.Protocol()
    lines = Results(study.STUDY.kept, json.loads(json.dumps(dataclasses.asdict(protocol)))).lines()
    seeds = {line["seed"] for line in lines}
    assert len(seeds) >= 5 and len(lines) == len(seeds) * len(study.CONDITIONS)
    assert study.figures(lines, protocol) in studying.PAGE.read_text("utf-8")


def test_the_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import study_pictures

    # Labels at the same height go apart and stay in order.
    heights = study_pictures.apart([0.0, 0.0, 0.01, 0.9])
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert min(heights) >= 0.0 and min(gaps) >= study_pictures.BETWEEN * 0.99
    for study, draw in ((recycling, study_pictures.draw_recycling), (growing, study_pictures.draw_growing)):
        protocol = study.Protocol()
        lines = Results(study.STUDY.kept, dataclasses.asdict(protocol)).lines()
        draw(lines, protocol, tmp_path / "picture.png")
        kept = study.STUDY.picture
        assert (tmp_path / "picture.png").read_bytes()[:8] == kept.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
