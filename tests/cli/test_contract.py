"""The command line keeps its contract: streams, names, exit codes, JSON, specs, seeds."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from netgrow_cli import cli

from .driver import (
    CORE_SPEC,
    MLP_SPEC,
    SAMPLES,
    SPECS,
    Run,
    chain,
    contents,
    core_state,
    environment,
    in_process_of_its_own,
    program,
    save,
)

ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
CHANGE_KEYS = {
    "command", "input", "output", "widths", "tensors", "equivalence", "model_code", "seed", "seconds",
}  # fmt: skip
EQUIVALENCE_KEYS = {"max_abs", "max_rel", "tolerance", "probes", "dtype", "equal"}

# Of each command that changes something: the flags that make it do so on `dead_mlp`.
CHANGES: dict[str, tuple[str, ...]] = {
    "expand": ("--layer", "fc1", "--add", "3"),
    "split": ("--layer", "fc1", "--units", "1,3"),
    "prune": ("--layer", "fc1", "--dead"),
    "recycle": ("--layer", "fc1"),
}
PAST = {"expand": "expanded", "split": "split", "prune": "pruned", "recycle": "recycled"}


def _flags(value: Any) -> str | None:
    """The name of a case: its flags."""
    return " ".join(value) if isinstance(value, tuple) else ""


def dead_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """The chain, with two units of fc1 that no input of a reasonable size wakes."""
    state = chain(5, 6, 4, 3, seed=seed)
    state["fc1.bias"][[2, 4]] = -1e6
    return state


@pytest.fixture
def dead_mlp(tmp_path: Path) -> Path:
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC)
    return save(tmp_path / "ckpt.pt", dead_state())


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def same_function(a: Path, b: Path) -> None:
    """Both as plain chains of linear layers and ReLU, in float64, without netgrow."""
    x = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    outputs = []
    for path in (a, b):
        state, value = tensors_of(path), x
        for name in ("fc1", "fc2", "out"):
            value = value @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()
            value = value if name == "out" else value.relu()
        outputs.append(value)
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-12 * outputs[0].abs().max()


# -- changes: streams, names, JSON -----------------------------------------------------------------


@pytest.mark.parametrize("command", CHANGES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_default_output(run: Run, tmp_path: Path, command: str, ending: str) -> None:
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC)
    ckpt = save(tmp_path / f"ckpt{ending}", dead_state())
    before = contents(tmp_path)
    result = run(command, ckpt, *CHANGES[command])
    assert result.path == tmp_path / f"ckpt.{PAST[command]}{ending}"
    same_function(ckpt, result.path)
    new = set(contents(tmp_path)) - set(before)
    beside = (
        set() if ending == ".safetensors" else {f"{result.path.name}.netgrow.yaml", f"{result.path.name}.netgrow.json"}
    )
    assert new == {result.path.name} | beside
    assert {name: contents(tmp_path)[name] for name in before} == before
    assert "\x1b" not in result.err


@pytest.mark.parametrize("command", CHANGES)
def test_json_of_a_change(run: Run, dead_mlp: Path, command: str) -> None:
    result = run(command, dead_mlp, *CHANGES[command], "--json", "--seed", "7")
    assert result.code == 0
    found = result.json
    assert set(found) >= CHANGE_KEYS
    assert (found["command"], found["input"], found["seed"]) == (command, str(dead_mlp), 7)
    assert Path(found["output"]).name == f"ckpt.{PAST[command]}.pt"
    after = {"expand": 9, "split": 8, "prune": 4, "recycle": 6}[command]
    assert len(found["widths"]) == 1
    width = found["widths"][0]
    assert (width["name"], width["before"], width["after"]) == ("fc1", 6, after)
    assert set(width["layers"]) == {"fc1", "fc2"}
    assert {(entry["name"], *entry["before"], *entry["after"]) for entry in found["tensors"]} == {
        ("fc1.weight", 6, 5, after, 5),
        ("fc1.bias", 6, after),
        ("fc2.weight", 4, 6, 4, after),
    }
    proof = found["equivalence"]
    assert set(proof) >= EQUIVALENCE_KEYS
    assert proof["equal"] is True and proof["max_rel"] <= proof["tolerance"] and proof["probes"] > 0
    assert proof["dtype"] == "float64"
    assert all(set(entry) >= {"layer", "what", "before", "after", "source"} for entry in found["model_code"])
    assert found["seconds"] >= 0


@pytest.mark.parametrize("command", CHANGES)
def test_dry_run_writes_nothing(run: Run, dead_mlp: Path, command: str) -> None:
    before = contents(dead_mlp.parent)
    plain = run(command, dead_mlp, *CHANGES[command], "--dry-run")
    assert plain.code == 0 and plain.out == ""
    assert "fc1.weight" in plain.err and "nothing was written" in plain.err
    found = run(command, dead_mlp, *CHANGES[command], "--dry-run", "--json").json
    assert set(found) >= CHANGE_KEYS and found["widths"][0]["name"] == "fc1"
    assert contents(dead_mlp.parent) == before


def test_dry_run_over_an_existing_output(run: Run, dead_mlp: Path) -> None:
    (dead_mlp.parent / "ckpt.expanded.pt").write_text("mine")
    assert run("expand", dead_mlp, *CHANGES["expand"], "--dry-run").code == 0


@pytest.mark.parametrize("command", CHANGES)
def test_nothing_is_replaced_without_force(run: Run, dead_mlp: Path, command: str) -> None:
    for taken in (f"ckpt.{PAST[command]}.pt", f"ckpt.{PAST[command]}.pt.netgrow.yaml"):
        place = dead_mlp.parent / taken
        place.write_text("mine")
        before = contents(dead_mlp.parent)
        result = run(command, dead_mlp, *CHANGES[command])
        assert result.code == 2 and result.out == ""
        assert taken in result.complaint and "--force" in result.complaint
        assert contents(dead_mlp.parent) == before
        done = run(command, dead_mlp, *CHANGES[command], "--force")
        assert done.path.name == f"ckpt.{PAST[command]}.pt"
        assert place.read_bytes() != b"mine"
        for name in set(contents(dead_mlp.parent)) - {"ckpt.pt", "netgrow.yaml"}:
            (dead_mlp.parent / name).unlink()


def test_output_by_name(run: Run, dead_mlp: Path) -> None:
    for flag in ("-o", "--output"):
        target = dead_mlp.parent / f"new{flag}.pt"
        assert run("expand", dead_mlp, *CHANGES["expand"], flag, target).path == target


def test_the_input_may_be_replaced_with_force(run: Run, dead_mlp: Path) -> None:
    old = dead_mlp.with_name("old.pt")
    old.write_bytes(dead_mlp.read_bytes())
    result = run("expand", dead_mlp, *CHANGES["expand"], "-o", dead_mlp, "--force")
    assert result.path == dead_mlp
    same_function(old, dead_mlp)
    assert tensors_of(dead_mlp)["fc1.weight"].shape == (9, 5)
    # What lies beside it now describes the new widths.
    assert run("split", dead_mlp, "--layer", "fc2", "--top", "1").code == 0


@pytest.mark.parametrize("command", CHANGES)
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_the_same_seed_gives_the_same_bytes(run: Run, tmp_path: Path, command: str, ending: str) -> None:
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC)
    ckpt = save(tmp_path / f"ckpt{ending}", dead_state())
    made = []
    for seed in (5, 5, 6):
        folder = tmp_path / f"{len(made)}"
        folder.mkdir()
        run(command, ckpt, *CHANGES[command], "--seed", seed, "-o", folder / f"new{ending}").path  # noqa: B018
        made.append(contents(folder))
    assert made[0] == made[1]
    assert len(made[0]) == (1 if ending == ".safetensors" else 3)
    if command != "prune":
        assert made[0][f"new{ending}"] != made[2][f"new{ending}"]


def test_the_same_seed_in_another_process(run: Run, dead_mlp: Path) -> None:
    here = run("split", dead_mlp, *CHANGES["split"], "-o", dead_mlp.with_name("a.pt")).path
    there = in_process_of_its_own("split", dead_mlp, *CHANGES["split"], "-o", dead_mlp.with_name("b.pt"))
    assert there.returncode == 0
    assert here.read_bytes() == dead_mlp.with_name("b.pt").read_bytes()


def test_the_record(run: Run, dead_mlp: Path) -> None:
    beside = run("split", dead_mlp, *CHANGES["split"], "--seed", "4").path
    record = json.loads(beside.with_name(f"{beside.name}.netgrow.json").read_text())
    assert (record["command"], record["input"], record["seed"]) == ("split", "ckpt.pt", 4)
    assert [change["width"] for change in record["changes"]] == ["fc1"]
    inside = run(
        "split", save(dead_mlp.with_name("c.safetensors"), dead_state()), *CHANGES["split"], "--seed", "4"
    ).path
    with safe_open(inside, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["netgrow.record"])["changes"] == record["changes"]
    assert metadata["netgrow.spec"].startswith("netgrow: 1")


def test_no_verify_is_said_loudly(run: Run, dead_mlp: Path) -> None:
    result = run("expand", dead_mlp, *CHANGES["expand"], "--no-verify")
    assert "NOT VERIFIED" in result.err and result.path.is_file()
    found = run("expand", dead_mlp, *CHANGES["expand"], "--no-verify", "--json", "--force")
    assert found.json["equivalence"] is None and "NOT VERIFIED" in found.err


@pytest.mark.parametrize(
    "flags",
    [
        ("--probes", "17"),
        ("--seed", "3"),
        ("--tolerance", "1e-3"),
        ("--dtype", "float32"),
        ("--device", "cpu"),
        ("--check-learnable",),
        ("--drop-optimizer",),
        ("--key", ""),
        ("--allow-drift", "0.5"),
    ],
    ids=lambda flags: flags[0],
)
def test_flags_of_changes(run: Run, dead_mlp: Path, flags: tuple[str, ...]) -> None:
    found = run("expand", dead_mlp, *CHANGES["expand"], "--json", *flags).json
    assert found["equivalence"]["equal"] is True
    if flags[0] == "--probes":
        assert found["equivalence"]["probes"] == 17
    if flags[0] == "--tolerance":
        assert found["equivalence"]["tolerance"] == 1e-3
    if flags[0] == "--dtype":
        assert found["equivalence"]["dtype"] == "float32"


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv", ".pt", ".safetensors"])
def test_probe_data(run: Run, dead_mlp: Path, ending: str) -> None:
    rows = np.random.default_rng(0).standard_normal((11, 5)).astype(np.float32)
    file = dead_mlp.with_name(f"probes{ending}")
    if ending == ".npy":
        np.save(file, rows)
    elif ending == ".npz":
        np.savez(file, x=rows)
    elif ending == ".csv":
        np.savetxt(file, rows, delimiter=",", header="a,b,c,d,e", comments="")
    else:
        save(file, {"x": torch.from_numpy(rows)})
    found = run("expand", dead_mlp, *CHANGES["expand"], "--probe-data", file, "--json").json
    assert found["equivalence"]["probes"] == 11


def test_lossy_prune(run: Run, dead_mlp: Path) -> None:
    before = contents(dead_mlp.parent)
    result = run("prune", dead_mlp, "--layer", "fc1", "--units", "0")
    assert result.code == 1 and result.out == ""
    assert "--allow-drift" in result.complaint and "nothing was written" in result.complaint
    assert contents(dead_mlp.parent) == before
    tight = run("prune", dead_mlp, "--layer", "fc1", "--units", "0", "--allow-drift", "1e-9", "--json")
    assert tight.code == 1 and tight.out == ""
    done = run("prune", dead_mlp, "--layer", "fc1", "--units", "0", "--allow-drift", "9", "--json").json
    assert done["equivalence"]["equal"] is False and done["equivalence"]["max_rel"] > 0


# -- how much, and of what ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "after"), [(("--add", "3"), 9), (("--to", "11"), 11), (("--times", "2"), 12), (("--times", "1.5"), 9)]
)
def test_how_wide(run: Run, dead_mlp: Path, flags: tuple[str, ...], after: int) -> None:
    found = run("expand", dead_mlp, "--layer", "fc1", *flags, "--json").json
    assert found["widths"][0]["after"] == after


@pytest.mark.parametrize("init", ["match", "kaiming", "antisymmetric"])
def test_inits(run: Run, dead_mlp: Path, init: str) -> None:
    result = run("expand", dead_mlp, "--layer", "fc1", "--add", "4", "--init", init)
    same_function(dead_mlp, result.path)
    new = tensors_of(result.path)
    assert bool((new["fc1.weight"][6:] != 0).all())
    assert bool((new["fc2.weight"][:, 6:] == 0).all()) == (init != "antisymmetric")


@pytest.mark.parametrize(
    ("flags", "split"),
    [
        (("--units", "1,3"), {"1", "3"}),
        (("--units", "0-2"), {"0", "1", "2"}),
        (("--units", "all"), set("012345")),
        (("--top", "2", "--by", "incoming"), None),
        (("--above", "0", "--by", "outgoing"), set("012345")),
        (("--units", "5", "--noise", "0"), {"5"}),
        (("--units", "5", "--noise", "0.5"), {"5"}),
    ],
    ids=_flags,
)
def test_which_units_are_split(run: Run, dead_mlp: Path, flags: Any, split: set[str] | None) -> None:
    found = run("split", dead_mlp, "--layer", "fc1", *flags, "--json").json
    copied = set(found["widths"][0]["copied"])
    assert copied == split if split is not None else len(copied) == 2
    same_function(dead_mlp, Path(found["output"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_copies_are_no_twins(run: Run, tmp_path: Path, dtype: torch.dtype) -> None:
    """Each pair's outgoing weights, here a single number each, add up bit for bit and differ."""
    state = {name: tensor.to(dtype) for name, tensor in chain(5, 400, 1).items()}
    ckpt = save(tmp_path / "ckpt.pt", state)
    found = run("split", ckpt, "--layer", "fc1", "--units", "all", "--json").json
    assert found["folded_back"]["differing"] == []
    old, new = state["out.weight"], tensors_of(tmp_path / "ckpt.split.pt")["out.weight"]
    assert torch.equal(new[:, :400].double() + new[:, 400:].double(), old.double())
    assert (new[:, :400] != new[:, 400:]).double().mean() > 0.98


@pytest.mark.parametrize(
    ("flags", "gone"),
    [
        (("--units", "2,4"), [2, 4]),
        (("--dead",), [2, 4]),
        (("--lowest", "1", "--by", "incoming", "--allow-drift", "9"), 1),
        (("--fraction", "0.5", "--allow-drift", "9"), 3),
        (("--below", "1e9", "--allow-drift", "9"), 5),
    ],
    ids=_flags,
)
def test_which_units_are_pruned(run: Run, dead_mlp: Path, flags: Any, gone: list[int] | int) -> None:
    dropped = run("prune", dead_mlp, "--layer", "fc1", *flags, "--json").json["widths"][0]["dropped"]
    assert dropped == gone if isinstance(gone, list) else len(dropped) == gone


def test_duplicates_are_merged(run: Run, tmp_path: Path) -> None:
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC)
    state = chain(5, 6, 4, 3)
    for name in ("fc1.weight", "fc1.bias"):
        state[name][5] = state[name][1]
    ckpt = save(tmp_path / "ckpt.pt", state)
    found = run("prune", ckpt, "--layer", "fc1", "--duplicates", "--json").json
    assert found["widths"][0]["after"] == 5
    x = torch.randn(9, 5, dtype=torch.float64)
    new = tensors_of(Path(found["output"]))
    assert torch.allclose(new["fc2.weight"][:, 1], state["fc2.weight"][:, 1] + state["fc2.weight"][:, 5], rtol=1e-6)
    assert x.shape == (9, 5)


def test_layers_by_glob_and_repeated(run: Run, dead_mlp: Path) -> None:
    for layers in (("--layer", "fc*"), ("--layer", "fc1", "--layer", "fc2"), ("--width", "fc1", "--layer", "fc2")):
        found = run("expand", dead_mlp, *layers, "--add", "2", "--json", "--dry-run").json
        assert {width["name"] for width in found["widths"]} == {"fc1", "fc2"}
    assert "fc1" in run("expand", dead_mlp, "--layer", "fc1", "--add", "2", "--dry-run").err


def test_a_glob_passes_over_what_is_frozen(run: Run, dead_mlp: Path) -> None:
    found = run("expand", dead_mlp, "--layer", "*", "--add", "2", "--json", "--dry-run").json
    assert {width["name"] for width in found["widths"]} == {"fc1", "fc2"}


# -- names of widths -----------------------------------------------------------------------------------


def test_names_of_widths(run: Run, core: Path) -> None:
    found = run("inspect", core, "--json").json
    assert set(found) >= {"tensors", "widths"}
    assert all(set(entry) >= {"name", "shape", "dtype", "layout"} for entry in found["tensors"])
    keys = {"name", "size", "producers", "consumers", "per_unit", "frozen", "effects"}
    assert all(set(entry) >= keys for entry in found["widths"])
    widths = {entry["name"]: entry for entry in found["widths"]}
    assert {name: entry["size"] for name, entry in widths.items()} == {
        "x": 4, "enc": 20, "side": 7, "core[0:12]": 12, "core[12:20]": 8, "left": 2, "right": 3,
    }  # fmt: skip
    assert widths["core[0:12]"]["producers"] == ["core"] and widths["core[0:12]"]["consumers"] == ["left"]
    assert widths["enc"]["frozen"] is None
    assert "output" in widths["left"]["frozen"] and "input" in widths["x"]["frozen"]
    layouts = {entry["name"]: entry["layout"] for entry in found["tensors"]}
    assert layouts["core.weight"] == "core[0:12] + core[12:20]  enc + side"
    assert layouts["left.weight"] == "left  core[0:12]"
    shapes = {entry["name"]: (entry["shape"], entry["dtype"]) for entry in found["tensors"]}
    assert shapes["core.weight"] == ([20, 27], "F32")


def test_units_count_along_the_layers_output(run: Run, core: Path) -> None:
    found = run("split", core, "--layer", "core", "--units", "3,15", "--json", "--dry-run").json
    assert {width["name"]: list(width["copied"]) for width in found["widths"]} == {
        "core[0:12]": ["3"],
        "core[12:20]": ["3"],
    }


def test_units_through_a_concatenation(run: Run) -> None:
    found = run(
        "split", SAMPLES / "digits_conv.safetensors", "--spec", SPECS / "digits_conv.yaml",
        "--layer", "joined", "--units", "2,20", "--json", "--dry-run",
    ).json  # fmt: skip
    assert {width["name"]: list(width["copied"]) for width in found["widths"]} == {
        "stem.conv": ["2"],
        "branch.conv": ["4"],
    }


def test_add_to_a_layer_of_several_widths_lists_them(run: Run, core: Path) -> None:
    result = run("expand", core, "--layer", "core", "--add", "4")
    assert result.code == 2 and result.out == ""
    assert "'core[0:12]' (12)" in result.complaint and "'core[12:20]' (8)" in result.complaint
    done = run("expand", core, "--width", "core[12:20]", "--add", "4", "--json").json
    assert [(width["name"], width["after"]) for width in done["widths"]] == [("core[12:20]", 12)]
    assert tensors_of(Path(done["output"]))["core.weight"].shape == (24, 27)


def test_dead_and_scores_on_a_layer_of_several_widths(run: Run, tmp_path: Path) -> None:
    state = core_state()
    state["core.bias"][[1, 13, 14]] = -1e6
    ckpt = save(tmp_path / "core.pt", state)
    (tmp_path / "core.pt.netgrow.yaml").write_text(CORE_SPEC)
    found = run("prune", ckpt, "--layer", "core", "--dead", "--json").json
    assert {width["name"]: width["dropped"] for width in found["widths"]} == {
        "core[0:12]": [1],
        "core[12:20]": [1, 2],
    }
    top = run("split", ckpt, "--layer", "core", "--top", "3", "--json", "--dry-run").json
    assert sum(len(width["copied"]) for width in top["widths"]) == 3


def test_a_tied_width_counts_once(run: Run) -> None:
    """`--add N` counts units of the width; enc_a and trunk both get N rows."""
    found = run(
        "expand", SAMPLES / "actor_critic.pt", "--spec", SPECS / "actor_critic.yaml",
        "--width", "enc_a[0:32]", "--add", "5", "--json", "--dry-run",
    ).json  # fmt: skip
    after = {entry["name"]: entry["after"] for entry in found["tensors"]}
    assert after["enc_a.weight"] == [69, 3] and after["trunk.weight"] == [69, 101] and after["value.weight"] == [1, 69]
    assert after["mean.weight"] == [1, 37] and "log_std.weight" not in after


# -- specs --------------------------------------------------------------------------------------------


def named(width: str) -> str:
    """The chain's spec, with an input of that name: to see which spec was taken."""
    return MLP_SPEC.replace("x:", f"{width}:").replace("from: x", f"from: {width}")


def spec_taken(run: Run, ckpt: Path, *flags: Any) -> str:
    found = run("inspect", ckpt, "--json", *flags).json
    return next(width["name"] for width in found["widths"] if width["size"] == 5)


def test_the_order_in_which_specs_are_found(run: Run, tmp_path: Path) -> None:
    ckpt = save(tmp_path / "a.safetensors", chain(5, 6, 4, 3))
    assert spec_taken(run, ckpt) == "input"  # drafted
    (tmp_path / "netgrow.yaml").write_text(named("folder"))
    assert spec_taken(run, ckpt) == "folder"
    (tmp_path / "a.safetensors.netgrow.yaml").write_text(named("beside"))
    assert spec_taken(run, ckpt) == "beside"
    (tmp_path / "s.yaml").write_text(named("stated"))
    assert spec_taken(run, ckpt, "--spec", tmp_path / "s.yaml") == "stated"
    made = run("expand", ckpt, "--layer", "fc1", "--add", "1", "--spec", tmp_path / "s.yaml").path
    (tmp_path / f"{made.name}.netgrow.yaml").write_text(named("beside"))
    assert spec_taken(run, made) == "stated"  # embedded
    (tmp_path / "t.yaml").write_text(named("other"))
    assert spec_taken(run, made, "--spec", tmp_path / "t.yaml") == "other"


def test_a_spec_with_a_key_for_both_formats(run: Run, tmp_path: Path) -> None:
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC + "key: policy.net\n")
    nested = {"policy": {"net": chain(5, 6, 4, 3)}, "value": chain(5, 6, 4, 1)}
    ckpt = save(tmp_path / "a.pt", nested)
    there = run("convert", ckpt, "--key", "policy.net", "-o", tmp_path / "b.safetensors").path
    for path in (ckpt, there):
        assert run("check", path).code == 0
        made = run("expand", path, "--layer", "fc1", "--add", "2").path
        assert run("inspect", made).code == 0 and run("verify", path, made).code == 0


def test_a_spec_that_is_not_taken_may_be_broken(run: Run, tmp_path: Path) -> None:
    made = run("expand", save(tmp_path / "a.safetensors", chain(5, 6, 4, 3)), "--layer", "fc1", "--add", "1").path
    (tmp_path / "netgrow.yaml").write_text("layers: [")
    assert run("split", made, "--layer", "fc1", "--units", "1").code == 0
    assert run("inspect", made).code == 0
    assert run("expand", tmp_path / "a.safetensors", "--layer", "fc1", "--add", "2", "--force").code == 2


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_the_rewritten_spec_fits_the_output(run: Run, tmp_path: Path, ending: str) -> None:
    (tmp_path / f"core{ending}.netgrow.yaml").write_text(CORE_SPEC)
    ckpt = save(tmp_path / f"core{ending}", core_state())
    made = run("expand", ckpt, "--width", "core[0:12]", "--width", "side", "--add", "3").path
    widths = {entry["name"]: entry["size"] for entry in run("inspect", made, "--json").json["widths"]}
    assert widths["core[0:15]"] == 15 and widths["core[15:23]"] == 8 and widths["side"] == 10
    assert run("check", made).code == 0
    assert run("verify", ckpt, made).code == 0


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_commands_chain_without_a_spec(run: Run, tmp_path: Path, ending: str) -> None:
    first = save(tmp_path / f"core{ending}", core_state())
    spec = tmp_path / "spec.yaml"
    spec.write_text(CORE_SPEC)
    expanded = run("expand", first, "--layer", "enc", "--add", "4", "--spec", spec).path
    assert expanded.name == f"core.expanded{ending}"
    split = run("split", expanded, "--layer", "core", "--units", "0,19").path
    assert split.name == f"core.expanded.split{ending}"
    # The fresh units' outgoing weights are zero still, so that they can go again.
    pruned = run("prune", split, "--layer", "enc", "--units", "20-23").path
    recycled = run("recycle", pruned, "--layer", "side").path
    for other in (expanded, split, pruned, recycled):
        assert run("verify", first, other, "--spec", spec).code == 0
        assert run("verify", other, first, "--spec", spec).code == 0
    for one, other in ((expanded, split), (split, pruned), (pruned, recycled), (expanded, recycled)):
        result = run("verify", one, other, "--json")
        assert result.code == 0 and result.json["equal"] is True


def test_a_drafted_spec_says_what_it_assumed(run: Run, mlp: Path) -> None:
    result = run("expand", mlp, "--layer", "fc1", "--add", "2")
    assert result.path.name == "ckpt.expanded.pt"
    assert "assumed: " in result.err and "fc1 -> fc2 -> out" in result.err
    found = run("expand", mlp, "--layer", "fc1", "--add", "2", "--json", "--force").json
    assert any("fc1 -> fc2 -> out" in line for line in found["assumed"])


# -- inspect, diff, check, infer, verify, convert ----------------------------------------------------


def test_inspect_prints_tables(run: Run, core: Path) -> None:
    result = run("inspect", core)
    assert result.code == 0 and result.err == "" and "\x1b" not in result.out
    for text in ("core[0:12]", "enc + side", "frozen: output of the model (left)", "4 of 7 widths may change"):
        assert text in result.out


def test_diff(run: Run, mlp: Path, dead_mlp: Path) -> None:
    other = run("expand", mlp, "--layer", "fc1", "--add", "2").path
    same = run("diff", mlp, mlp)
    assert same.code == 0 and same.err == "" and "same" in same.out
    assert run("diff", mlp, mlp, "--json").json == {"same": True, "changed": [], "only_a": [], "only_b": []}
    result = run("diff", mlp, other)
    assert result.code == 1 and result.err == "" and "\x1b" not in result.out and "[6, 5] → [8, 5]" in result.out
    found = run("diff", mlp, other, "--json")
    assert found.code == 1 and set(found.json) >= {"same", "changed", "only_a", "only_b"}
    assert {"name": "fc2.weight", "a": [4, 6], "b": [4, 8]} in found.json["changed"]


def test_diff_of_values(run: Run, tmp_path: Path) -> None:
    a, b = save(tmp_path / "a.pt", chain(5, 6, 3)), save(tmp_path / "b.safetensors", chain(5, 6, 3, seed=1))
    assert run("diff", a, b).code == 0
    assert run("diff", a, b, "--values").code == 1
    assert run("diff", a, b, "--values", "--json").json["same"] is False


def test_check(run: Run, core: Path, tmp_path: Path) -> None:
    result = run("check", core, "--spec", tmp_path / "core.pt.netgrow.yaml")
    assert result.code == 0 and "outputs unchanged" in result.out and result.err == ""
    found = run("check", core, "--json").json
    assert found["equivalence"]["equal"] is True and found["permuted"] == 4


def test_check_finds_a_wrong_spec(run: Run, tmp_path: Path) -> None:
    """A product of two layers' outputs that the spec leaves out: the permutation shows it."""
    state = chain(5, 6, 4, 3)
    ckpt = save(tmp_path / "a.pt", {**state, "gate.weight": torch.randn(6, 5)})
    spec = tmp_path / "s.yaml"
    spec.write_text(
        MLP_SPEC.replace("act1:", "gate: {op: linear, from: x}\n  act1:").replace("outputs: [", "outputs: [gate, ")
    )
    assert run("check", ckpt, "--spec", spec).code == 0
    # gate is an output and fixed; a sum with it freezes fc1 as well
    spec.write_text(spec.read_text().replace("act1: {op: relu, from: fc1}", "act1: {op: add, from: [fc1, gate]}"))
    refused = run("expand", ckpt, "--layer", "fc1", "--add", "1", "--spec", spec)
    assert refused.code == 3 and "output of the model (gate)" in refused.complaint


def test_infer(run: Run, mlp: Path, tmp_path: Path) -> None:
    result = run("infer", mlp)
    assert result.code == 0 and result.out.startswith("netgrow: 1\n") and result.err.startswith("assumed: ")
    target = tmp_path / "s.yaml"
    written = run("infer", mlp, "-o", target)
    assert written.path == target and target.read_text() == result.out
    assert run("infer", mlp, "-o", target).code == 2
    assert run("infer", mlp, "-o", target, "--force", "--activation", "relu", "--json").json["output"] == str(target)
    assert "op: relu" in target.read_text()
    assert run("check", mlp, "--spec", target).code == 0
    assert run("prune", mlp, "--layer", "fc1", "--dead", "--spec", target).code == 0


def test_verify(run: Run, dead_mlp: Path) -> None:
    made = run("expand", dead_mlp, *CHANGES["expand"]).path
    equal = run("verify", dead_mlp, made)
    assert equal.code == 0 and equal.err == "" and equal.out.count("equal") >= 1
    found = run("verify", dead_mlp, made, "--json").json
    assert set(found) >= EQUIVALENCE_KEYS and found["equal"] is True
    other = save(dead_mlp.with_name("other.pt"), dead_state(seed=1))
    different = run("verify", dead_mlp, other)
    assert different.code == 1 and "DIFFERENT" in different.out
    as_json = run("verify", dead_mlp, other, "--json")
    assert as_json.code == 1 and as_json.json["equal"] is False
    assert run("verify", dead_mlp, other, "--tolerance", "1e9").code == 0
    assert run("verify", dead_mlp, dead_mlp).code == 0


def test_verify_by_the_real_model(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SAMPLES))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    ckpt, spec = SAMPLES / "actor_critic.pt", SPECS / "actor_critic.yaml"
    made = run("split", ckpt, "--layer", "trunk", "--units", "5,40", "--spec", spec, "-o", tmp_path / "new.pt").path
    flags = ("--model", "models:ActorCritic", "--spec", spec, "--json")
    found = run("verify", ckpt, made, *flags)
    assert found.code == 0, found.err
    assert found.json["equal"] is True
    wrong = torch.load(made, weights_only=True)
    wrong["value.bias"] += 1
    made.with_name("new.pt.netgrow.yaml").rename(tmp_path / "wrong.pt.netgrow.yaml")
    assert run("verify", ckpt, save(tmp_path / "wrong.pt", wrong), *flags).code == 1


def test_convert(run: Run, mlp: Path, tmp_path: Path) -> None:
    there = run("convert", mlp, "-o", tmp_path / "a.safetensors")
    assert there.path == tmp_path / "a.safetensors"
    back = run("convert", there.path, "-o", tmp_path / "b.pth")
    assert run("diff", mlp, back.path, "--values").code == 0
    found = run("convert", mlp, "-o", tmp_path / "c.safetensors", "--json").json
    assert found["output"] == str(tmp_path / "c.safetensors")
    assert run("convert", mlp, "-o", tmp_path / "c.safetensors").code == 2
    assert run("convert", mlp, "-o", tmp_path / "c.safetensors", "--force").code == 0


def test_convert_takes_the_spec_and_the_record_along(run: Run, tmp_path: Path) -> None:
    (tmp_path / "core.pt.netgrow.yaml").write_text(CORE_SPEC)
    ckpt = save(tmp_path / "core.pt", core_state())
    made = run("expand", ckpt, "--width", "core[0:12]", "--add", "3").path
    there = run("convert", made, "-o", tmp_path / "a.safetensors").path
    back = run("convert", there, "-o", tmp_path / "b.pt").path
    for ending in ("netgrow.yaml", "netgrow.json"):
        assert back.with_name(f"b.pt.{ending}").read_bytes() == made.with_name(f"{made.name}.{ending}").read_bytes()
    for path in (there, back):
        assert run("split", path, "--layer", "core", "--units", "0").code == 0
        assert "bit for bit" in run("verify", ckpt, path).out


# -- pipes ---------------------------------------------------------------------------------------------


def test_through_pipes(mlp: Path) -> None:
    expand = " ".join(program("expand", "-", "--layer", "fc1", "--add", "2"))
    split = " ".join(program("split", "-", "--layer", "fc2", "--units", "1", "-o", "-"))
    done = subprocess.run(
        f"set -o pipefail; {expand} < {mlp} | {split} > {mlp}.out",
        shell=True, executable="/bin/bash", capture_output=True, env=environment(), timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"" and b"\x1b" not in done.stderr
    new = torch.load(Path(f"{mlp}.out"), weights_only=True)
    assert new["fc1.weight"].shape == (8, 5) and new["fc2.weight"].shape == (5, 8)
    assert set(contents(mlp.parent)) == {"ckpt.pt", "ckpt.pt.out"}


def test_standard_input_and_output(run: Run, mlp: Path, tmp_path: Path) -> None:
    raw = mlp.read_bytes()
    out = run("expand", "-", "--layer", "fc1", "--add", "2", stdin=raw)
    assert out.code == 0
    assert torch.load(io.BytesIO(out.raw), weights_only=True)["fc1.weight"].shape == (8, 5)
    assert "-o FILE keeps them" in out.err
    kept = run("expand", "-", "--layer", "fc1", "--add", "2", "-o", tmp_path / "o.pt", "--json", stdin=raw)
    assert kept.json["input"] == "-" and kept.json["output"] == str(tmp_path / "o.pt")
    assert run("inspect", "-", stdin=raw).out == run("inspect", mlp).out
    assert run("infer", "-", stdin=raw).out.startswith("netgrow: 1")
    assert run("check", "-", stdin=raw).code == 0
    assert run("diff", "-", mlp, stdin=raw).code == 0
    assert run("diff", mlp, "-", stdin=raw).code == 0
    assert run("verify", mlp, "-", stdin=out.raw).code == 0
    other = run("convert", "-", "-o", "-", stdin=raw)
    assert other.code == 0 and other.raw[8:9] == b"{"
    whole = run("expand", "-", "--layer", "fc1", "--add", "2", stdin=other.raw)
    assert whole.code == 0 and "keeps them" not in whole.err  # (a safetensors file holds both)
    again = run("convert", "-", "-o", "-", stdin=other.raw)
    assert torch.load(io.BytesIO(again.raw), weights_only=True).keys() == torch.load(mlp, weights_only=True).keys()


@pytest.mark.parametrize("command", [("inspect",), ("diff",), ("infer",)], ids=lambda command: command[0])
def test_a_reader_that_leaves(tmp_path: Path, command: tuple[str, ...]) -> None:
    names = [f"layer{number}" for number in range(900)]
    ckpt = save(tmp_path / "a.safetensors", chain(*[3] * 902, names=names))
    other = save(tmp_path / "b.safetensors", chain(*[4] * 902, names=names))
    arguments = [ckpt, other] if command[0] == "diff" else [ckpt]
    running = subprocess.Popen(
        program(*command, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert running.stdout is not None and running.stderr is not None
    running.stdout.read(10)
    running.stdout.close()
    errors = running.stderr.read().decode()
    assert running.wait(60) in (0, 1)
    assert [line for line in errors.splitlines() if not line.startswith(("assumed: ", "no layouts: "))] == []


def test_a_reader_of_errors_that_leaves(dead_mlp: Path) -> None:
    expand = " ".join(program("expand", dead_mlp, *CHANGES["expand"]))
    done = subprocess.run(
        f"{expand} 2>&1 >/dev/null | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, env=environment(), timeout=600, check=False,
    )  # fmt: skip
    assert done.stdout == b"0\n" and done.stderr == b""
    assert dead_mlp.with_name("ckpt.expanded.pt").is_file()


def test_a_full_standard_output(mlp: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            program("inspect", mlp), stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=600, check=False
        )
    assert done.returncode == 2
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("assumed: ")]
    assert len(lines) == 1 and "No space left on device" in lines[0]


# -- interrupts, help, colours --------------------------------------------------------------------------


def test_an_interrupt_leaves_no_file(dead_mlp: Path) -> None:
    before = contents(dead_mlp.parent)
    running = subprocess.Popen(
        program("expand", dead_mlp, *CHANGES["expand"], "--probes", 10**9),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        # A shell's background jobs ignore interrupts, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        until = time.monotonic() + 600
        while not list(dead_mlp.parent.glob(".netgrow-*")):  # the output is under way
            assert time.monotonic() < until and running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 130
    assert out == b"" and len(err.splitlines()) == 1 and b"interrupted" in err
    assert contents(dead_mlp.parent) == before


@pytest.mark.parametrize(
    "command",
    ["", "inspect", "diff", "check", "infer", "expand", "split", "prune", "recycle", "verify", "convert"],
)
def test_help(run: Run, command: str) -> None:
    for flag in ("--help", "-h"):
        result = run(*([command] if command else []), flag)
        assert result.code == 0 and "Usage" in result.out and result.err == ""


@pytest.mark.parametrize(
    ("command", "flags"),
    {
        "inspect": "--spec --json",
        "diff": "--values --json",
        "check": "--spec --json --probes --probe-data --seed --tolerance --dtype --device",
        "infer": "--output --json",
        "convert": "--output --force --json",
        "verify": "--spec --model --json --probes --probe-data --seed --tolerance --dtype --device",
        "expand": "--layer --width --add --to --times --init",
        "split": "--layer --width --units --top --above --by --noise",
        "prune": "--layer --width --units --dead --duplicates --lowest --fraction --below --by",
        "recycle": "--layer --width",
    }.items(),
)
def test_every_flag_of_the_contract_is_there(run: Run, command: str, flags: str) -> None:
    wanted = flags.split()
    if command in CHANGES:
        wanted += (
            "--spec --json --dry-run --probes --probe-data --seed --tolerance --dtype --device --force "
            "--no-verify --allow-drift --output".split()
        )
    text = run(command, "--help").out
    for flag in wanted:
        assert flag in text, flag


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, mlp: Path, no_colour: str) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_colour)
    with open(child, "w") as terminal:  # noqa: PTH123
        monkeypatch.setattr(sys, "argv", ["netgrow", "expand", str(mlp), "--layer", "fc1", "--add", "1"])
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(SystemExit) as left:
            cli.main()
        monkeypatch.undo()
    assert left.value.code == 0
    seen = os.read(parent, 65536)
    os.close(parent)
    assert b"equal" in seen
    assert (b"\x1b[32m" in seen) == (not no_colour)
