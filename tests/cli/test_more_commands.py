"""apply, scores and graph; what goes along with a change."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .driver import Run, chain, save

RECIPE = """
netgrow: 1
changes:
  - expand: {layer: [fc1, fc2], add: 2}
  - split: {layer: fc1, units: [0, 3]}
  - split: {layer: fc2, units: all, noise: 0.1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_apply_does_all_steps(run: Run, mlp: Path, recipe: Path) -> None:
    result = run("apply", recipe, mlp)
    assert result.path == mlp.with_name("ckpt.edited.pt")
    state = torch.load(result.path)
    assert [tuple(state[f"{name}.weight"].shape) for name in ("fc1", "fc2", "out")] == [(10, 5), (12, 10), (3, 12)]
    assert run("verify", mlp, result.path).code == 0
    assert not list(mlp.parent.glob(".netgrow*"))


def test_apply_in_json(run: Run, mlp: Path, recipe: Path) -> None:
    found = run("apply", recipe, mlp, "--json").json
    assert found["command"] == "apply" and found["equivalence"]["equal"]
    shapes = {entry["name"]: (entry["before"], entry["after"]) for entry in found["tensors"]}
    assert shapes["fc1.weight"] == ([6, 5], [10, 5]) and len(found["steps"]) == 3


def test_apply_on_many_checkpoints_goes_on_after_a_failure(run: Run, mlp: Path, recipe: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.safetensors", chain(5, 7, 4, 3))
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"nothing")
    result = run("apply", recipe, mlp, broken, other)
    assert result.code == 2 and "broken.pt" in result.err
    assert result.out.split() == [str(tmp_path / "ckpt.edited.pt"), str(tmp_path / "other.edited.safetensors")]


def test_apply_writes_nothing_where_a_step_fails(refused: Callable[..., str], mlp: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("netgrow: 1\nchanges:\n  - expand: {layer: fc1, add: 2}\n  - expand: {layer: out, add: 2}\n")
    assert "output of the model" in refused(3, "apply", recipe, mlp)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("netgrow: 1\nchanges:\n  - grow: {layer: fc1}\n", "r.yaml:3: 'grow' is no change"),
        ("netgrow: 1\nchanges:\n  - expand: {layer: fc1, more: 3}\n", "r.yaml:3: expand has no setting 'more'"),
        ("netgrow: 1\nchanges:\n  - expand: {layer: fc1}\n", "r.yaml:3: expand: say how wide"),
        ("netgrow: 1\nchanges: []\n", "a recipe has"),
        ("changes:\n  - expand: {layer: fc1, add: 1}\n", "starts with `netgrow: 1`"),
    ],
)
def test_recipes_that_are_wrong(
    refused: Callable[..., str], mlp: Path, tmp_path: Path, text: str, expected: str
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    assert expected in refused(2, "apply", recipe, mlp)


def test_a_dry_run_of_a_recipe(run: Run, mlp: Path, recipe: Path) -> None:
    before = sorted(mlp.parent.iterdir())
    found = run("apply", recipe, mlp, "--dry-run", "--json").json
    assert [width["after"] for width in found["widths"]][-1] == 12
    assert sorted(mlp.parent.iterdir()) == before


def test_scores_are_norms(run: Run, mlp: Path) -> None:
    state = torch.load(mlp)
    found = run("scores", mlp, "--layer", "fc1", "--by", "incoming", "--json").json
    weights, bias = state["fc1.weight"].double(), state["fc1.bias"].double()
    expected = (weights.square().sum(1) + bias.square()).sqrt()
    assert torch.allclose(torch.tensor(found["widths"][0]["scores"], dtype=torch.float64), expected)


def test_scores_as_bars_and_csv(run: Run, mlp: Path) -> None:
    bars = run("scores", mlp).out
    assert bars.startswith("fc1 (6 units)\n") and "fc2 (4 units)" in bars and "█" in bars
    rows = list(csv.DictReader(io.StringIO(run("scores", mlp, "--csv").out)))
    assert len(rows) == 10 and rows[0]["width"] == "fc1" and float(rows[0]["score"]) > 0


def test_scores_that_do_not_exist(refused: Callable[..., str], mlp: Path) -> None:
    assert "there is no such score" in refused(2, "scores", mlp, "--by", "beauty")


def test_graph_as_text_and_as_a_picture(run: Run, core: Path, tmp_path: Path) -> None:
    assert run("graph", core).out.startswith("graph TD\n")
    picture = run("graph", core, "-o", tmp_path / "core.svg").path
    texts = [element.text or "" for element in xml.parse(picture).getroot().iter() if element.tag.endswith("text")]
    assert any(text.startswith("core") for text in texts)
    dot = run("graph", core, "-o", tmp_path / "core.dot").path.read_text()
    assert dot.startswith("digraph") and dot.count("->") >= 3


def test_a_graph_of_no_known_form(refused: Callable[..., str], core: Path, tmp_path: Path) -> None:
    assert "the ending should be one of" in refused(2, "graph", core, "-o", tmp_path / "core.png")


def test_a_tensor_where_a_layer_is_meant(refused: Callable[..., str], mlp: Path) -> None:
    assert "it belongs to --layer fc1" in refused(2, "expand", mlp, "--layer", "fc1.weight", "--add", "2")


def test_what_goes_along_is_said(run: Run, tmp_path: Path) -> None:
    """Averages by their names, twins by `--also`; `--leave` is silent; a dry run says it too."""
    states = {"q1": chain(5, 6, 3), "q2": chain(5, 6, 3, seed=1), "target_q1": chain(5, 6, 3, seed=2)}
    ckpt = save(tmp_path / "a.pt", states)
    grow = ("expand", ckpt, "--key", "q1", "--layer", "fc1", "--add", "2", "--force")
    plain = run(*grow)
    assert "along with it: target_q1 (4 tensors): equal" in plain.err and "folded back" in plain.err
    assert plain.err.count("warning: ") == 1 and "--also q2" in plain.err and "--leave q2" in plain.err
    both = run(*grow, "--also", "q2")
    assert "along with it: q2" in both.err and "warning: " not in both.err
    assert torch.load(both.path, weights_only=True)["q2"]["fc1.weight"].shape == (8, 5)
    left = run(*grow, "--leave", "q2", "--leave", "target_q1", "--json")
    assert left.json["also"] == [] and left.json["warnings"] == []
    dry = run(*grow, "--dry-run", "--json")
    assert [(one["key"], one["equivalence"]) for one in dry.json["also"]] == [("target_q1", None)]
    assert "along with it: target_q1 (4 tensors)" in run(*grow, "--dry-run").err
    assert "those that do: 'q2', 'target_q1'" in run(*grow, "--also", "nothing").err
