"""The zip container, read back by Python's zipfile and by torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from netgrow_cli.checkpoint import stored_zip
from netgrow_cli.checkpoint.stored_zip import StoredZip
from netgrow_cli.checkpoint.torch_writer import TorchWriter
from netgrow_cli.checkpoint.types import TensorInfo


@pytest.mark.parametrize("zip64_from", [0, 1, 50, 1000, 2**32 - 1])
def test_records_come_back(tmp_path: Path, zip64_from: int) -> None:
    """Thresholds this low put the 64-bit forms of size, offset and directory to the test without 4 GB."""
    records = {f"archive/data/{i}": bytes([i]) * (37 * i) for i in range(5)} | {"archive/é": b"x"}
    archive = StoredZip(tmp_path / "a.zip", zip64_from=zip64_from)
    for name, data in records.items():
        archive.add(name, data)
    archive.finish()
    with zipfile.ZipFile(tmp_path / "a.zip") as found:
        assert found.testzip() is None
        assert {name: found.read(name) for name in found.namelist()} == records
    content = (tmp_path / "a.zip").read_bytes()
    assert content.index(bytes([4]) * 148) % 64 == 0


@pytest.mark.parametrize("zip64_from", [0, 100])
def test_torch_reads_the_64_bit_form(tmp_path: Path, zip64_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_zip.StoredZip.__init__, "__kwdefaults__", {"zip64_from": zip64_from})
    writer = TorchWriter(tmp_path / "a.pt", [TensorInfo("w", (30,), "F32")], lambda values, _: dict(values))
    writer.write("w", torch.arange(30.0))
    writer.finish()
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "a.pt", mmap=mmap, weights_only=True)
        assert torch.equal(loaded["w"], torch.arange(30.0))


def test_more_records_than_16_bits_count(tmp_path: Path) -> None:
    archive = StoredZip(tmp_path / "a.zip")
    for i in range(65_536):
        archive.add(str(i), b"")
    archive.finish()
    with zipfile.ZipFile(tmp_path / "a.zip") as found:
        assert len(found.namelist()) == 65_536
