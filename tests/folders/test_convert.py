"""Conversions into folders and out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from netgrow_cli.checkpoint import open_checkpoint
from tests.cli.driver import Run, chain, contents, save

pytestmark = pytest.mark.filterwarnings("ignore")
INDEX = "model.safetensors.index.json"


def values(path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name).tolist() for name in checkpoint.tensors}


def test_a_folder_goes_round(run: Run, folder: Path, tmp_path: Path) -> None:
    """Folder, file, torch file, torch.distributed.checkpoint, folder: the same tensors, and the spec with them."""
    expected = values(folder)
    wide = Path(run("expand", folder, "--layer", "fc1", "--add", "2").out.strip())
    new = values(wide)
    steps = ("one.safetensors", "two.pt", "three.dcp", "four.safetensors", "five.dcp", "six.pt")
    source = wide
    for step in steps:
        result = run("convert", source, "-o", tmp_path / step)
        assert result.code == 0 and result.out == f"{tmp_path / step}\n", result.err
        source = tmp_path / step
        assert values(source) == new
        # The spec and the record went along.
        assert run("verify", folder, source, "--json").json["folded_back"] == {"exact": 6, "differing": []}
    result = run("convert", source, "-o", tmp_path / "last", "--shard-size", "150")
    assert result.code == 0, result.err
    assert values(tmp_path / "last") == new and (tmp_path / "last" / INDEX).is_file()
    assert run("verify", folder, tmp_path / "last").code == 0
    assert values(folder) == expected


def test_torch_shards_become_safetensors(run: Run, folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    weight_map = {}
    for number, file in enumerate(sorted(folder.glob("*.safetensors")), 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(load_file(file), old / name)
        weight_map |= dict.fromkeys(load_file(file), name)
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (old / "optimizer.pt").write_bytes(b"moments")  # no shape changes
    (old / "config.json").write_bytes(b"{}")
    result = run("convert", old, "-o", tmp_path / "new")
    assert result.code == 0, result.err
    found, source = contents(tmp_path / "new"), contents(folder)
    assert {name for name in found if name.endswith("safetensors")} == {n for n in source if n.endswith("safetensors")}
    assert all(found[name] == source[name] for name in found if name.endswith(".safetensors"))
    assert json.loads(found[INDEX] or b"")["weight_map"] == json.loads(source[INDEX] or b"")["weight_map"]
    assert (found["optimizer.pt"], found["config.json"]) == (b"moments", b"{}")


def test_a_file_becomes_a_folder_that_torch_loads(run: Run, tmp_path: Path) -> None:
    state = chain(5, 6, 4, 3)
    source = save(tmp_path / "run.pt", {"model": state, "epoch": 3})
    result = run("convert", source, "-o", tmp_path / "run.dcp")
    assert result.code == 0 and "left out: epoch" in result.err
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, checkpoint_id=tmp_path / "run.dcp")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert {path.name for path in (tmp_path / "run.dcp").iterdir()} == {".metadata", "__0_0.distcp"}


def test_refusals(run: Run, folder: Path, tmp_path: Path) -> None:
    plain = save(tmp_path / "plain.pt", chain(5, 6, 4, 3))
    before = contents(tmp_path)
    for words, says in (
        ((folder, "-o", tmp_path / "out"), "--shard-size SIZE cuts them anew"),
        ((folder, "-o", "-"), "which standard output cannot hold"),
        ((folder, "-o", folder, "--shard-size", "1GB"), "is the input itself"),
        ((plain, "-o", tmp_path / "out"), "names no format"),
        ((plain, "-o", tmp_path / "out.safetensors", "--shard-size", "1GB"), "is to be none"),
        ((plain, "-o", tmp_path / "out", "--shard-size", "much"), "as in 5GB"),
    ):
        result = run("convert", *words)
        assert result.code == 2 and says in result.complaint, result.err
    assert contents(tmp_path) == before
