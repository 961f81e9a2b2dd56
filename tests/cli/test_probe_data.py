"""`--probe-data` and `--proven` as people use them: which files are taken, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from .driver import MLP_SPEC, Run, chain, save

ROWS = np.random.default_rng(0).normal(size=(40, 5))

TOKENS_SPEC = """\
netgrow: 1
inputs:
  tokens: {shape: [batch], dtype: int64, high: 10}
  image: [batch, 1, 2, 3]
layers:
  emb: {op: embedding, from: tokens}
  fc: {op: linear, from: emb}
  flat: {op: flatten, from: image}
  side: {op: linear, from: flat}
  sum: {op: add, from: [fc, side]}
  act: {op: relu, from: sum}
  out: {op: linear, from: act}
outputs: [out]
"""
ONE_INPUT = {
    "tokens": "netgrow: 1\ninputs: {t: {shape: [batch], dtype: int64, high: 10}}\nlayers:\n"
    "  emb: {op: embedding, from: t}\n  out: {op: linear, from: emb}\noutputs: [out]\n",
    "image": "netgrow: 1\ninputs: {i: [batch, 1, 2, 3]}\nlayers:\n  flat: {op: flatten, from: i}\n"
    "  side: {op: linear, from: flat}\n  act: {op: relu, from: side}\n  out: {op: linear, from: act}\noutputs: [out]\n",
}


@pytest.fixture
def mlp_with_dead(tmp_path: Path) -> Path:
    """fc2's unit 1 reads what is never negative by negative weights; fc1's unit 2 wakes on no reasonable input."""
    state = chain(5, 6, 4, 3)
    state["fc1.bias"][2] = -1e6
    state["fc2.weight"][1], state["fc2.bias"][1] = -state["fc2.weight"][1].abs(), 0.0
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC)
    return save(tmp_path / "ckpt.pt", state)


def text_of(rows: Any, header: str = "", mark: str = ",") -> str:
    lines = [header] if header else []
    return "\n".join([*lines, *(mark.join(str(cell) for cell in row) for row in rows), ""])


def written(path: Path) -> Path:
    """The rows in the format of a file's name."""
    single = torch.from_numpy(ROWS).float()
    if path.suffix == ".npy":
        np.save(path, ROWS.astype(">f4"))  # (from another machine)
    elif path.suffix == ".npz":
        np.savez(path, observations=ROWS)
    elif path.suffix == ".safetensors":
        save_file({"x": single}, path)
    elif path.suffix == ".pt":
        torch.save(single, path)
    else:
        path.write_text(text_of(ROWS))
    return path


@pytest.mark.parametrize("ending", (".npy", ".npz", ".safetensors", ".pt", ".csv"))
def test_every_format(run: Run, mlp_with_dead: Path, tmp_path: Path, ending: str) -> None:
    data = written(tmp_path / f"obs{ending}")
    found = run("prune", mlp_with_dead, "--layer", "fc1", "--dead", "--probe-data", data, "--json").json
    assert {"kind": "data", "rows": 40, "origin": data.name, "random": False} in found["evidence"]
    assert any("dead means dead on the 40 rows of" in line for line in found["warnings"])


@pytest.mark.parametrize(
    "text",
    (
        text_of(ROWS, "a,b,c,d,e"),
        text_of(ROWS, '"a","b","c","d","e"'),
        text_of(ROWS, mark=";"),
        text_of(ROWS, "a\tb\tc\td\te", "\t"),
        "\ufeff" + text_of(ROWS),
        text_of(ROWS).replace("\n", "\r\n\r\n"),
    ),
    ids=("header", "quoted", "semicolons", "tabs", "byte order mark", "empty lines"),
)
def test_tables_as_programs_write_them(run: Run, mlp_with_dead: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "obs.csv").write_bytes(text.encode())
    found = run("prune", mlp_with_dead, "--layer", "fc1", "--dead", "--probe-data", tmp_path / "obs.csv", "--json").json
    assert found["equivalence"]["probes"] == 40


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("", "it has no rows"),
        ("a,b,c,d,e\n", "it has no rows"),
        ("a,b,c,d,e\n1,2,3,4\n", "line 2 has 4 columns, those before have 5"),
        ("a,b,c,d,e\n1,2,,4,5\n", "line 2, column 3 (c) is empty, where a number is needed"),
        ("1,2,3,4,5\n\n1,2,cat,4,5\n", "line 3, column 3 is 'cat', where a number is needed"),
        ("a,b,c,d,e,label\n1,2,3,4,5,0\n", "should be [batch, 5], the file has [1, 6]; leave out columns"),
        ("1,2,nan,4,5\n", "not all finite"),
    ),
)
def test_tables_that_do_not_fit(refused: Any, mlp_with_dead: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "obs.csv").write_text(text)
    line = refused(2, "prune", mlp_with_dead, "--layer", "fc1", "--dead", "--probe-data", tmp_path / "obs.csv")
    assert message in line


@pytest.mark.parametrize(("name", "text", "shape"), (
    ("tokens", "token\n3\n9\n0\n", {"emb.weight": (10, 4), "out.weight": (2, 4), "out.bias": (2,)}),
    ("image", "1,2,3,4,5,6\n6,5,4,3,2,1\n", {"side.weight": (3, 6), "side.bias": (3,), "out.weight": (2, 3),
                                             "out.bias": (2,)}),
))  # fmt: skip
def test_a_table_takes_the_form_of_the_input(
    run: Run, tmp_path: Path, name: str, text: str, shape: dict[str, tuple[int, ...]]
) -> None:
    """Integers where the network reads integers, images flattened in rows."""
    path = save(tmp_path / "net.pt", {key: torch.ones(size) for key, size in shape.items()})
    (tmp_path / "netgrow.yaml").write_text(ONE_INPUT[name])
    (tmp_path / "rows.csv").write_text(text)
    found = run("verify", path, path, "--probe-data", tmp_path / "rows.csv", "--proof", "whole", "--json")
    assert found.code == 0, found.err
    assert found.json["data"] == "rows.csv"


@pytest.mark.parametrize(
    ("arrays", "message"),
    (
        ({"tokens": np.arange(3)}, "no array named 'image'; it has tokens"),
        ({"tokens": np.arange(3), "image": np.zeros((2, 1, 2, 3))}, "different numbers of rows: tokens 3, image 2"),
        (
            {"tokens": np.arange(9, 12), "image": np.zeros((3, 1, 2, 3))},
            "'tokens' holds 11; the spec allows from 0 up to 9",
        ),
        ({"tokens": -np.arange(3), "image": np.zeros((3, 1, 2, 3))}, "'tokens' holds -2; the spec allows"),
        ({"tokens": np.zeros(3), "image": np.zeros((3, 1, 2, 3))}, "should be int64, the file has float64"),
        ({"tokens": np.arange(3), "image": np.zeros((3, 1, 2, 3), "u1")}, "should be float32, the file has uint8"),
        ({"tokens": np.arange(3), "image": np.zeros((3, 2, 3))}, "should be [batch, 1, 2, 3], the file has [3, 2, 3]"),
    ),
)
def test_several_inputs_by_name(refused: Any, run: Run, tmp_path: Path, arrays: Any, message: str) -> None:
    shapes = {"emb.weight": (10, 4), "fc.weight": (3, 4), "fc.bias": (3,), "side.weight": (3, 6), "side.bias": (3,),
              "out.weight": (2, 3), "out.bias": (2,)}  # fmt: skip
    path = save(tmp_path / "net.pt", {key: torch.ones(size) for key, size in shapes.items()})
    (tmp_path / "netgrow.yaml").write_text(TOKENS_SPEC)
    np.savez(tmp_path / "good.npz", tokens=np.arange(3, dtype="i4"), image=np.zeros((3, 1, 2, 3), "f4"))
    np.savez(tmp_path / "bad.npz", **arrays)
    (tmp_path / "one.csv").write_text("1\n2\n")
    flags = ("prune", path, "--layer", "fc", "--dead", "--dry-run", "--probe-data")
    assert run(*flags, tmp_path / "good.npz", "--json").json["evidence"][0]["rows"] == 3
    assert message in refused(2, *flags, tmp_path / "bad.npz")
    assert "with an array for each: tokens, image" in refused(2, *flags, tmp_path / "one.csv")


# -- --proven ----------------------------------------------------------------------------------------------


def test_proven_units_alone(run: Run, mlp_with_dead: Path, tmp_path: Path) -> None:
    plain = run("prune", mlp_with_dead, "--layer", "fc*", "--dead", "-o", tmp_path / "dead.pt", "--json").json
    assert {one["name"]: one["dropped"] for one in plain["widths"]} == {"fc1": [2], "fc2": [1]}
    assert [one["kind"] for one in plain["evidence"]] == ["probes", "bounds"]
    assert any("--probe-data FILE" in line and "--proven" in line for line in plain["warnings"])
    assert any("of 6 units dead on 8192 random probes, none of them proven" in n for n in plain["notes"])
    only = run("prune", mlp_with_dead, "--layer", "fc*", "--dead", "--proven", "--json").json
    assert {one["name"]: one["dropped"] for one in only["widths"]} == {"fc2": [1]}
    assert only["evidence"] == [{"kind": "bounds", "rows": None, "origin": "every input", "random": False}]
    assert only["warnings"] == [] and only["equivalence"]["equal"]
    said = run("prune", mlp_with_dead, "--layer", "fc2", "--dead", "--proven", "--force").err
    assert "fc2: 1 of 4 units proven dead for every input" in said and "warning" not in said


def test_proven_in_a_recipe(run: Run, mlp_with_dead: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("netgrow: 1\nchanges:\n  - prune: {layer: fc2, dead: true, proven: true}\n")
    done = run("apply", tmp_path / "recipe.yaml", mlp_with_dead)
    assert torch.load(done.path, weights_only=True)["fc2.weight"].shape == (3, 6)


def test_proven_goes_with_dead(refused: Any, mlp_with_dead: Path) -> None:
    assert "--proven goes with --dead" in refused(
        2, "prune", mlp_with_dead, "--layer", "fc1", "--units", "1", "--proven"
    )
