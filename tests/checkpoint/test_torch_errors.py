"""What is no torch checkpoint, or not a safe one, is said in one line that names the file."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netgrow_cli.checkpoint import open_checkpoint
from netgrow_cli.errors import CheckpointError


class Evil:
    """Runs a command when it is unpickled by anything that does not refuse."""

    def __init__(self, witness: str) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


def save(value: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path, **options)


def truncated(path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, path)
    with path.open("r+b") as file:
        file.truncate(2000)


def compressed(path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, path.with_suffix(".plain"))
    with (
        zipfile.ZipFile(path.with_suffix(".plain")) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.namelist():
            new.writestr(record, old.read(record))


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


def damaged_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00hello")
        archive.writestr("archive/version", b"3\n")


def numpy_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, w=np.ones(3))


CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "directory": (lambda path: path.mkdir(), "is a directory"),
    "empty": (lambda path: path.touch(), "is empty"),
    "text": (lambda path: path.write_text("hello, world"), "is not a checkpoint: it starts with b'hello, w'"),
    "one byte": (lambda path: path.write_bytes(b"\x80"), "is not a checkpoint"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "is a web page"),
    "LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "GGUF": (lambda path: path.write_bytes(b"GGUF\3\0\0\0"), "is a GGUF file"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08\0"), "compressed with gzip"),
    "truncated": (truncated, "is truncated or damaged"),
    "compressed": (compressed, "compressed by something else than torch"),
    "TorchScript": (torchscript, "is a TorchScript archive"),
    "numpy archive": (numpy_archive, "without data.pkl"),
    "damaged pickle": (damaged_pickle, "is damaged, or not a checkpoint"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"w": 1})), "that torch.save did not write"),
    "a module": (
        save(torch.nn.Linear(2, 2)),
        "contains code (torch.nn.modules.linear.Linear), refused; re-save it as a state_dict",
    ),
    "no tensors": (save({"epoch": 3, "name": "x"}), "holds no model weights; its keys are 'epoch', 'name'"),
    "empty dict": (save({}), "holds an empty dict"),
    "a tensor": (save(torch.zeros(3)), "holds a single tensor"),
    "a list": (save([torch.zeros(3)]), "holds a list"),
    "only an optimizer": (save({"state": {}, "param_groups": []}), "holds no model weights"),
    "numbers as names": (save({0: torch.zeros(3)}), "names must be text; found 0 (int)"),
    "some numbers as names": (save({"w": torch.zeros(3), 1: torch.zeros(3)}), "names must be text; found 1 (int)"),
    "sparse": (save({"w": torch.eye(3).to_sparse()}), "tensor 'w' is sparse_coo"),
    "sparse rows": (lambda path: torch.save({"w": torch.eye(3).to_sparse_csr()}, path), "tensor 'w' is sparse_csr"),
    "meta": (save({"w": torch.zeros(3, device="meta")}), "on the device meta and holds no data"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_named_in_one_line(tmp_path: Path, case: str) -> None:
    make, reason = CASES[case]
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False])
def test_code_is_named_and_does_not_run(tmp_path: Path, new: bool) -> None:
    path, witness = tmp_path / "model.pt", tmp_path / "witness"
    torch.save({"w": torch.zeros(1), "x": Evil(str(witness))}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=r"contains code \((posix|nt)\.system\), refused"):
        open_checkpoint(path)
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()  # it would have


def test_a_directory_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"give the checkpoint file in it: best\.pt"):
        open_checkpoint(tmp_path)


def test_unreadable_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(path)
