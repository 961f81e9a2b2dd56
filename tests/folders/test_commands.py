"""The commands on folders: what they write, leave out and refuse, and what is there after a failure."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from netgrow_cli.checkpoint import staging
from netgrow_cli.checkpoint.staged_folder import staged_folder
from netgrow_cli.errors import CheckpointError
from tests.cli.driver import Run, contents, environment, program

INDEX = "model.safetensors.index.json"
EXPAND = ("--layer", "fc1", "--add", "2", "--probes", "8")


def folder_of(result: Any) -> Path:
    """The one path on standard output, of a folder that is there."""
    assert result.code == 0, result.err
    (line,) = result.out.splitlines()
    assert Path(line).is_dir()
    return Path(line)


# -- every command takes a folder, and the index in it ---------------------------------------------------


@pytest.mark.parametrize("name", ["", "/", f"/{INDEX}"])
def test_every_command(run: Run, folder: Path, name: str) -> None:
    given = f"{folder}{name}"
    assert "fc1" in run("inspect", given).out
    assert {entry["name"] for entry in run("inspect", given, "--json").json["widths"]} >= {"fc1", "fc2"}
    assert run("check", given).code == 0
    assert run("scores", given, "--layer", "fc1").code == 0
    assert "fc2" in run("graph", given).out
    assert "netgrow: 1" in run("infer", given).out
    wide = folder_of(run("expand", given, *EXPAND))
    assert wide == folder.with_name("net-1.5.expanded")
    assert run("diff", given, wide).code == 1 and run("diff", given, folder).code == 0
    assert run("verify", given, wide).code == 0
    assert run("verify", given, wide, "--json").json["folded_back"] == {"exact": 6, "differing": []}
    for command, more in (("split", ("--units", "1")), ("prune", ("--dead",)), ("recycle", ())):
        made = folder_of(run(command, given, "--layer", "fc1", "--probes", "64", *more))
        assert run("verify", folder, made).code == 0
        assert (made / "sub" / "vocab.txt").read_text() == "a\nb\n" and (made / INDEX).is_file()
        assert (made / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_recipe_on_folders(run: Run, folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("netgrow: 1\nchanges:\n  - expand: {layer: fc1, add: 3}\n  - split: {layer: fc2, units: [0]}\n")
    shutil.copytree(folder, tmp_path / "other")
    before = contents(folder)
    result = run("apply", recipe, folder, tmp_path / "other", "--probes", "8", "--shard-size", "100")
    assert result.code == 0, result.err
    for made, source in zip(result.out.splitlines(), (folder, tmp_path / "other"), strict=True):
        assert Path(made) == source.with_name(f"{source.name}.edited")
        assert run("verify", source, made).code == 0
        assert len(list(Path(made).glob("*.safetensors"))) > 2
    assert contents(folder) == before
    assert not list(tmp_path.glob(".netgrow-*"))
    assert "exists; pass --force" in run("apply", recipe, folder).complaint


def test_a_dry_run_writes_nothing(run: Run, folder: Path) -> None:
    (folder / "model.gguf").write_bytes(b"GGUF")
    before = contents(folder.parent)
    found = run("expand", folder, *EXPAND, "--dry-run", "--json").json
    assert found["output"].endswith("net-1.5.expanded")
    assert any("model.gguf" in line for line in found["warnings"])
    assert contents(folder.parent) == before


def test_a_plan_and_an_inspection_need_no_torch(folder: Path) -> None:
    for words in (("inspect", folder), ("diff", folder, folder), ("expand", folder, *EXPAND, "--dry-run")):
        code = (
            "import sys; from netgrow_cli.cli import main\n"
            f"sys.argv = ['netgrow', *{[str(word) for word in words]!r}]\n"
            "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_relative_paths(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert folder_of(run("expand", ".", *EXPAND)) == folder.with_name("net-1.5.expanded")
    monkeypatch.chdir(folder.parent)
    assert folder_of(run("expand", "net-1.5/", *EXPAND, "--force")) == Path("net-1.5.expanded")


# -- what goes along, and what does not -------------------------------------------------------------------


def test_other_weights_of_the_model_are_left_out_by_name(run: Run, folder: Path) -> None:
    stale = {
        **dict.fromkeys(("pytorch_model.bin", "model-q4.gguf", "tf_model.h5", "adapter_model.safetensors")),
        **dict.fromkeys(("original/consolidated.00.pth", "onnx/model.onnx", "checkpoint-500/model.safetensors")),
    }
    kept = ("original/params.json", "rng_state_0.pth", "training_args.bin", "heads.pt", ".gitattributes")
    for name in (*stale, *kept, ".git/config", ".cache/x", "__pycache__/y.pyc", "sub/.DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    result = run("expand", folder, *EXPAND)
    made = folder_of(result)
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    weights = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX}
    assert files == {*kept, *weights, "config.json", "netgrow.yaml", "netgrow.json", "sub/vocab.txt"}
    said = " ".join(result.err.split())
    for name in ("pytorch_model.bin", "model-q4.gguf", "tf_model.h5", "adapter_model.safetensors", "onnx/model.onnx"):
        assert name in said
    assert "original/consolidated.00.pth" in said and "checkpoint-500" in said
    assert "copied as they are, though they may depend on the widths: heads.pt" in said
    assert "rng_state" not in said and ".git" not in said.replace(".gitattributes", "")


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin", "global_step12/mp_rank_00_model_states.pt"])
def test_a_training_state_that_would_not_fit(run: Run, folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"state")
    (folder / "latest").write_text("global_step12")
    before = contents(folder.parent)
    result = run("expand", folder, *EXPAND)
    assert result.code == 2 and name.split("/")[0] in result.complaint and "--drop-optimizer" in result.complaint
    assert contents(folder.parent) == before
    result = run("expand", folder, *EXPAND, "--drop-optimizer")
    made = folder_of(result)
    assert not (made / name).exists() and name.split("/")[0] in result.err
    assert (made / "latest").exists() == (not name.startswith("global_step"))


def test_links_are_followed_and_loops_end(run: Run, folder: Path) -> None:
    (folder.parent / "blob").write_bytes(b"words")
    (folder / "merges.txt").symlink_to(folder.parent / "blob")
    (folder / "gone.txt").symlink_to(folder.parent / "nowhere")
    (folder / "sub" / "up").symlink_to(folder, target_is_directory=True)
    result = run("expand", folder, *EXPAND)
    made = folder_of(result)
    assert (made / "merges.txt").read_bytes() == b"words" and not (made / "merges.txt").is_symlink()
    assert "gone.txt" in result.err and not (made / "gone.txt").exists()
    assert not list(made.rglob("up/*"))


def test_a_spec_inside_a_single_file_does_not_go_stale(run: Run, folder: Path, tmp_path: Path) -> None:
    """What was changed as a file and then as a folder must not carry the older spec along."""
    (tmp_path / "plain").mkdir()
    state = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    save_file(state, tmp_path / "plain" / "model.safetensors")
    first = tmp_path / "first"
    first.mkdir()
    spec = ("--spec", folder / "netgrow.yaml")
    assert run(
        "expand", tmp_path / "plain" / "model.safetensors", *EXPAND, *spec, "-o", first / "model.safetensors"
    ).path
    second = folder_of(run("expand", first, *EXPAND))
    third = folder_of(run("split", second, "--layer", "fc1", "--units", "0", "--probes", "8"))
    assert [run("verify", a, b).code for a, b in ((first, second), (second, third), (folder, third))] == [0, 0, 0]


# -- refusals -------------------------------------------------------------------------------------------------


def test_outputs_that_are_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.tex").write_text("years of work")
    shutil.copytree(folder, tmp_path / "repository")
    (tmp_path / "repository" / ".git").mkdir()
    before = contents(tmp_path)
    for output, says in (
        (folder, "is the input itself; pass --force"),
        (tmp_path / "repository", "exists; pass --force"),
        (tmp_path / "x.safetensors", "the output of a folder is a folder"),
        (folder / "inside", "lies in the input"),
        (tmp_path, "holds the input"),
        (tmp_path / "file", "is a file, and the output is a folder"),
        (tmp_path / "no" / "such", "does not exist"),
        ("-", "is a folder, which standard output cannot hold"),
    ):
        result = run("expand", folder, *EXPAND, "-o", output)
        assert result.code == 2 and says in result.complaint
    for output, says in (
        (tmp_path / "docs", "holds no checkpoint, and --force replaces nothing else"),
        (tmp_path / "repository", "holds .git, which would be lost"),
        (tmp_path, "holds the input"),
    ):
        result = run("expand", folder, *EXPAND, "--force", "-o", output)
        assert result.code == 2 and says in result.complaint
    (folder / "model.gguf").write_bytes(b"GGUF")
    result = run("expand", folder, *EXPAND, "--force", "-o", folder)
    assert result.code == 2 and "would be lost: model.gguf" in result.complaint
    (folder / "model.gguf").unlink()
    result = run("expand", folder / "model-00001-of-00002.safetensors", *EXPAND)
    assert result.code == 2 and f"give the folder: {folder}" in result.complaint
    result = run("expand", tmp_path / "file", *EXPAND, "--shard-size", "5 apples")
    assert result.code == 2 and "as in 5GB" in result.complaint
    assert contents(tmp_path) == before


def test_a_full_disk_is_known_before(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    before = contents(folder.parent)
    complaint = run("expand", folder, *EXPAND).complaint
    assert "not enough space" in complaint and "needed, 1.0 kB free; nothing was written" in complaint
    assert contents(folder.parent) == before


# -- whatever goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("calls", [0, 1, 2, 5])
def test_a_write_that_fails_at_any_moment(
    run: Run, folder: Path, calls: int, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [calls]

    def failing(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= 1
            return real(*arguments)

        return call

    for name in ("pwrite", "pwritev", "copy_file_range"):
        if hasattr(os, name):
            monkeypatch.setattr(os, name, failing(getattr(os, name)))
    before = contents(folder.parent)
    more = ("--force", "-o", folder) if in_place else ()
    complaint = run("expand", folder, *EXPAND, *more).complaint
    assert "cannot write" in complaint and "No space left on device; nothing was written" in complaint
    assert contents(folder.parent) == before


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1])
def test_a_rename_that_fails_leaves_the_old_folder(
    tmp_path: Path, error: BaseException, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m"
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"old")
    real, calls = Path.rename, [0]

    def rename(self: Path, other: Path) -> Path:
        calls[0] += 1
        if calls[0] == after + 1:
            raise error
        return real(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt),
        staged_folder(target, force=True) as staged,
    ):
        (staged.paths[0] / "model.safetensors").write_bytes(b"new")
        staged.commit()
    assert contents(tmp_path) == {"m": None, "m/model.safetensors": b"old"}


def test_a_replaced_folder_has_nothing_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "m"
    (target / "sub").mkdir(parents=True)
    (target / "model.safetensors").write_bytes(b"old")
    target.chmod(0o750)
    with staged_folder(target, force=True) as staged:
        (staged.paths[0] / "new").write_bytes(b"new")
        staged.commit()
        assert (target / "model.safetensors").exists()
    assert contents(tmp_path) == {"m": None, "m/new": b"new"}
    assert target.stat().st_mode & 0o777 == 0o750


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "config.json").write_bytes(b"{}")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    with staged_folder(tmp_path / "link", force=True) as staged:
        staged.commit()
    assert (tmp_path / "real" / "config.json").exists()
    assert (tmp_path / "link").is_dir() and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(("kind", "ending"), [("folder", "SIGTERM"), ("folder", "SIGHUP"), ("file", "SIGTERM")])
def test_signals_leave_nothing_behind(folder: Path, tmp_path: Path, kind: str, ending: str) -> None:
    source = folder
    if kind == "file":
        source = tmp_path / "net.pt"
        state = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        torch.save(state, source)
        shutil.copyfile(folder / "netgrow.yaml", tmp_path / "net.pt.netgrow.yaml")
    before = contents(tmp_path)
    number = getattr(signal, ending)
    running = subprocess.Popen(
        program("expand", source, *EXPAND, "--probes", 10**9),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    try:
        until = time.monotonic() + 600
        while not list(tmp_path.glob(".netgrow-*")):
            assert time.monotonic() < until and running.poll() is None
            time.sleep(0.02)
        running.send_signal(number)
        out, err = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 128 + number
    assert out == b"" and len(err.splitlines()) == 1 and ending.encode() in err
    assert contents(tmp_path) == before


def test_a_metadata_that_is_not_there_stays_away(run: Run, tmp_path: Path, folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    for file in set(index["weight_map"].values()):
        save_file(load_file(folder / file), folder / file)
    made = folder_of(run("expand", folder, *EXPAND))
    for file in set(index["weight_map"].values()):
        save_file(load_file(made / file), tmp_path / "library")
        assert (tmp_path / "library").read_bytes() == (made / file).read_bytes()
