"""Scores and choices of units on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays

import netgrow_cli

from .driver import SAMPLES, SPECS, Run

MLP = SAMPLES / "digits_mlp.pt"
HOW = ("--spec", SPECS / "digits_mlp.yaml", "--probes", "300")


def _scores(run: Run, *more: object) -> dict[str, list[float]]:
    result = run("scores", MLP, *HOW, "--json", *more)
    assert result.code == 0, result.err
    return {entry["name"]: entry["scores"] for entry in json.loads(result.out)["widths"]}


def test_every_score_is_shown_with_its_evidence(run: Run) -> None:
    for by in ("weight", "incoming", "outgoing", "activation", "active", "dormant", "taylor"):
        result = run("scores", MLP, *HOW, "--by", by, "--json", "--layer", "fc1")
        told = json.loads(result.out)
        assert told["by"] == by and len(told["widths"][0]["scores"]) == 64
        assert ("300 random probes" in told["evidence"]) == ("warning: units may do otherwise" in result.err)


def test_scores_printed_as_csv_or_json_choose_the_same_units(run: Run, tmp_path: Path) -> None:
    csv, object_ = tmp_path / "s.csv", tmp_path / "s.json"
    csv.write_text(run("scores", MLP, *HOW, "--by", "taylor", "--csv").out)
    object_.write_text(run("scores", MLP, *HOW, "--by", "taylor", "--json").out)
    plans = []
    for more in (("--by", "taylor"), ("--scores", csv), ("--by", "file", "--scores", object_)):
        select = ("--layer", "fc1", "--lowest", "5", "--allow-drift", "1", "--dry-run", "--json")
        result = run("prune", MLP, *HOW, *select, *more)
        assert result.code == 0, result.err
        plans.append(json.loads(result.out)["widths"])
    assert plans[0] == plans[1] == plans[2] and plans[0][0]["after"] == 59


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_scores_by_width_or_by_layer(run: Run, tmp_path: Path, ending: str) -> None:
    scores = {"act1": np.arange(64.0), "fc2": np.zeros(32)}  # (what act1 gives are the units of fc1)
    path = tmp_path / f"s.{ending}"
    np.savez(path, **scores) if ending == "npz" else save_arrays(scores, path)
    split = ("split", MLP, *HOW, "--layer", "fc1", "--above", "60", "--scores", path, "--json", "--dry-run")
    told = json.loads(run(*split).out)
    assert [sorted(map(int, width["copied"])) for width in told["widths"]] == [[61, 62, 63]]
    assert told["notes"] == [f"3 of 64 units chosen by file, on the scores in s.{ending}"]


def test_globally_ranks_all_layers_together(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, fc1=np.arange(64.0), fc2=100 + np.arange(32.0))
    layers = ("--layer", "fc1", "--layer", "fc2", "--scores", path, "--allow-drift", "9", "--dry-run", "--json")
    each = json.loads(run("prune", MLP, *HOW, *layers, "--lowest", "3").out)
    both = json.loads(run("prune", MLP, *HOW, *layers, "--lowest", "3", "--globally").out)
    assert [(width["name"], width["dropped"]) for width in each["widths"]] == [("fc1", [0, 1, 2]), ("fc2", [0, 1, 2])]
    assert [(width["name"], width["dropped"]) for width in both["widths"]] == [("fc1", [0, 1, 2])]
    every = json.loads(run("prune", MLP, *HOW, *layers, "--below", "64", "--globally").out)
    assert [(width["name"], len(width["dropped"])) for width in every["widths"]] == [("fc1", 63)]


def test_new_widths_are_multiples(run: Run) -> None:
    for command, more, after in (
        ("prune", ("--fraction", "0.3", "--allow-drift", "9"), 48),
        ("split", ("--top", "3"), 72),
        ("expand", ("--add", "5"), 72),
    ):
        told = run(command, MLP, *HOW, "--layer", "fc1", "--round-to", "8", "--dry-run", "--json", *more)
        assert told.code == 0, told.err
        assert json.loads(told.out)["widths"][0]["after"] == after


def test_the_forums_algorithm(run: Run, tmp_path: Path) -> None:
    """Two commands: split what has a large gradient, prune what has a small one."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
    optimizer = torch.optim.Adam(model.parameters())
    recorder = netgrow_cli.UnitRecorder(model, every=1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        recorder.step()
        optimizer.step()
    recorder.save(tmp_path / "units.safetensors")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "ckpt.pt")
    how = ("--layer", "0", "--activation", "relu", "--by", "gradient")
    told = json.loads(
        run("scores", tmp_path / "ckpt.pt", *how, "--json", "--scores", tmp_path / "units.safetensors").out
    )
    values = np.sort(told["widths"][0]["scores"])
    split = run(
        "split", tmp_path / "ckpt.pt", *how, "--scores", tmp_path / "units.safetensors", "--above", values[9], "--json"
    )
    assert split.code == 0, split.err
    assert json.loads(split.out)["widths"][0]["after"] == 14 and json.loads(split.out)["equivalence"]["equal"]
    prune = run("prune", tmp_path / "ckpt.pt", *how, "--below", "1e9", "--allow-drift", "99", "--json")
    assert json.loads(prune.out)["widths"][0]["after"] == 1  # (by Adam's own state; never all of a width)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fc1,0,1.0\n", "'fc1' has 1 scores; it has 64 units"),
        ("fc1,0,1.0\nfc1,2,1.0\n", "'fc1' has no score for unit 1"),
        ("width,unit,score\nother,0,1.0\n", "it has no scores for 'fc1'; it has other"),
        ("0.1,0.2\n", "lines of width,unit,score are needed"),
        ("fc1,zero,1.0\n", "cannot be read as scores"),
        ("", "it holds no scores"),
    ],
)
def test_files_that_are_no_scores(refused: Callable[..., str], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    assert said in refused(2, "prune", MLP, *HOW, "--layer", "fc1", "--lowest", "1", "--scores", tmp_path / "s.csv")


def test_what_is_wrong_is_named(refused: Callable[..., str], mlp: Path, tmp_path: Path) -> None:
    choose = ("prune", MLP, *HOW, "--layer", "fc1", "--lowest", "1")
    assert "there is no such file" in refused(2, *choose, "--scores", tmp_path / "none.csv")
    assert "ends in .safetensors, .npz, .csv, .json" in refused(2, *choose, "--scores", tmp_path / "s.txt")
    assert "name the file with --scores FILE" in refused(2, *choose, "--by", "file")
    assert "--lowest and --above both" in refused(2, *choose, "--above", "3")
    np.savez(tmp_path / "s.npz", fc1=np.ones((64, 2)))
    assert "has the shape [64, 2]" in refused(2, *choose, "--scores", tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", fc1=np.full(64, np.nan))
    assert "holds NaN" in refused(2, *choose, "--scores", tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", fc1=np.ones(64))
    assert "not saved by a recorder" in refused(2, *choose, "--by", "gradient", "--scores", tmp_path / "s.npz")
    assert "no optimizer" in refused(
        3, "split", mlp, "--activation", "relu", "--layer", "fc1", "--top", "1", "--by", "gradient"
    )


def test_recipes_choose_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "netgrow: 1\nchanges:\n"
        "  - split: {layer: fc1, top: 3, by: activation, round_to: 8}\n"
        "  - prune: {layer: [fc1, fc2], fraction: 0.1, by: taylor, globally: true}\n"
    )
    result = run("apply", tmp_path / "r.yaml", MLP, *HOW, "-o", tmp_path / "o.pt", "--allow-drift", "9", "--json")
    assert result.code == 0, result.err
    (tmp_path / "r.yaml").write_text("netgrow: 1\nchanges:\n  - expand: {layer: fc1, top: 3}\n")
    assert "expand has no setting 'top'" in run("apply", tmp_path / "r.yaml", MLP, *HOW).err
