"""Tensors of a torch file by where their bytes lie, and a new file that is written from there."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import netgrow_cli
from netgrow_cli.checkpoint import open_checkpoint, stored_zip, torch_records
from netgrow_cli.checkpoint.positioned import write_at
from netgrow_cli.checkpoint.stored_zip import StoredZip
from netgrow_cli.checkpoint.tensor_bytes import as_bytes
from tests.equivalence.edits import spec_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8)


def tensors() -> dict[str, torch.Tensor]:
    """Several in one storage, views, ties, equal ones of the same size, nothing, and what does not lie in one run."""
    torch.manual_seed(0)
    whole = torch.randn(40, 8)
    state = {
        "whole": whole,
        "view": whole[3:9],
        "tied": whole,
        "columns": whole[:, 2:4],
        "turned": whole.T,
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(3.5),
        "one": torch.zeros(99),
        "other": torch.zeros(99),
    }
    return state | {str(dtype): torch.arange(77).reshape(7, 11).to(dtype) for dtype in DTYPES}


def test_regions_hold_the_values(tmp_path: Path) -> None:
    state = tensors()
    path = tmp_path / "a.pt"
    torch.save({"model": state, "more": [{"x": torch.randn(5)}], "step": torch.tensor(1)}, path)
    with open_checkpoint(path) as checkpoint:
        for name, tensor in state.items():
            region = checkpoint.region(name)
            if name in ("columns", "turned", "empty"):
                assert region is None or region.size == 0
                continue
            assert region is not None, name
            assert os.pread(region.fd, region.size, region.start) == bytes(as_bytes(tensor)), name


@pytest.mark.parametrize("kind", ("legacy", "other endings", "a single tensor of several alike"))
def test_where_nothing_is_known(tmp_path: Path, kind: str) -> None:
    """No region is better than a wrong one."""
    path = tmp_path / ("a.safetensors" if kind == "other endings" else "a.pt")
    torch.save({"w": torch.randn(2048)}, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind.startswith("a single"):
        torch.save({"w": torch.randn(2048)}, tmp_path / "b.pt")
        with zipfile.ZipFile(tmp_path / "b.pt") as given:
            records = {info.filename: given.read(info) for info in given.infolist()}
        archive = StoredZip(path)
        for name, data in records.items():
            archive.add(name, data)
        start = next(name for name in records if name.endswith("data/0"))
        filler = -archive._position % 4096 + 4096
        archive.add(start.replace("data/0", "filler"), bytes(filler))
        archive.add(start.replace("data/0", "data/1"), records[start])
        archive.finish()
    with open_checkpoint(path) as checkpoint:
        region = checkpoint.region("w")
        assert region is None or os.pread(region.fd, region.size, region.start) == bytes(as_bytes(checkpoint.read("w")))
        assert region is None or kind.startswith("a single")


SPEC = spec_of(
    "x: [batch, 40]",
    "b",
    a="op: linear, from: x",
    r="op: relu, from: a",
    b="op: linear, from: r",
    c="op: linear, from: b",
)


def training(folder: Path, **options: Any) -> Path:
    """A network whose last layer stays, beside a best state dict that shares its tensors, and an optimizer."""
    torch.manual_seed(1)
    layers = {"a": (64, 40), "b": (16, 64), "c": (3, 16)}
    state = {f"{n}.weight": torch.randn(*shape) for n, shape in layers.items()}
    state |= {f"{n}.bias": torch.randn(shape[0]) for n, shape in layers.items()}
    moments = {"exp_avg": torch.randn, "exp_avg_sq": torch.rand}
    adam = {
        "state": {
            n: {"step": torch.tensor(9.0)} | {k: f(v.shape) for k, f in moments.items()} for n, v in state.items()
        },
        "param_groups": [{"params": list(state), "betas": (0.9, 0.999)}],
    }
    folder.mkdir(exist_ok=True)
    torch.save(
        {"model": state, "backup": {"kept.c": state["c.weight"]}, "optimizer": adam}, folder / "net.pt", **options
    )
    text = SPEC.replace("outputs: [b]", "outputs: [c]")
    (folder / "net.pt.netgrow.yaml").write_text(text, encoding="utf-8")
    return folder / "net.pt"


@pytest.mark.parametrize("command", ("expand", "split", "prune"))
def test_a_change_is_the_same_with_and_without_regions(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From file to file or through the map: the same bytes, which zip tools find whole and torch loads."""
    path = training(tmp_path / "a")
    settings: dict[str, Any] = {"expand": {"add": 9}, "split": {"units": [1, 5]}}.get(
        command, {"units": [3], "allow_drift": 9.0}
    )
    change = getattr(netgrow_cli, command)
    streamed = change(path, layer="a", **settings, output=tmp_path / "streamed.pt").output
    monkeypatch.setattr(torch_records, "_located", lambda *_: {})
    mapped = change(path, layer="a", **settings, output=tmp_path / "mapped.pt").output
    assert streamed.read_bytes() == mapped.read_bytes()
    with zipfile.ZipFile(streamed) as archive:
        assert archive.testzip() is None
    new = torch.load(streamed, weights_only=True)
    old = torch.load(path, weights_only=True)
    assert torch.equal(new["model"]["c.weight"], old["model"]["c.weight"])
    assert new["backup"]["kept.c"].data_ptr() == new["model"]["c.weight"].data_ptr()
    assert torch.equal(new["model"]["a.weight"][:3], old["model"]["a.weight"][:3])


def test_what_stays_is_copied_with_the_crc_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read to be summed up."""
    path = training(tmp_path / "a")
    read: list[int] = []
    monkeypatch.setattr(
        stored_zip.StoredZip, "add", lambda self, name, data: read.append(len(data)) or add(self, name, data)
    )
    netgrow_cli.expand(path, layer="a", add=9, verify=False)
    names = set(zipfile.ZipFile(tmp_path / "a" / "net.expanded.pt").namelist())
    moments = 2 * (73 * 40 + 73 + 73 * 16) * 4
    assert sum(size for size in read if size > 4096) <= moments + 9000, "only changed moments, and the pickle"
    assert len(names) > 12


add = stored_zip.StoredZip.add


@pytest.mark.parametrize("zip64_from", (0, 50, 2**32 - 1))
def test_room_that_is_filled_later(tmp_path: Path, zip64_from: int) -> None:
    """In any order; sums are made of what is there at the end, in both forms of the header."""
    archive = StoredZip(tmp_path / "a.zip", zip64_from=zip64_from)
    first = archive.reserve("archive/first", 1000)
    archive.add("archive/middle", b"middle")
    last = archive.reserve("archive/last", 3_000_000)
    archive.reserve("archive/none", 0)
    for region, byte in ((last, b"z"), (first, b"a")):
        write_at(region.fd, region.start, byte * region.size)
        assert region.start % 64 == 0
    archive.finish()
    with zipfile.ZipFile(tmp_path / "a.zip") as found:
        assert found.testzip() is None
        assert found.read("archive/first") == b"a" * 1000 and found.read("archive/middle") == b"middle"
        assert found.read("archive/last") == b"z" * 3_000_000 and found.read("archive/none") == b""
