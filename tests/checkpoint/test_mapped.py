"""Regions compared where the cache has them: the same answer as when they are read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from netgrow_cli.checkpoint import mapped
from netgrow_cli.checkpoint.source import RegionSource
from netgrow_cli.checkpoint.transfer import same_bytes
from netgrow_cli.checkpoint.types import Region
from netgrow_cli.errors import CheckpointError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there")

PAGE = 4096
LENGTH = 5 * PAGE + 77


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two files with the same bytes, open for reading; the second has 13 more in front."""
    data = os.urandom(LENGTH)
    paths = tmp_path / "one", tmp_path / "other"
    paths[0].write_bytes(data)
    paths[1].write_bytes(bytes(13) + data)
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("window", [1, 100, PAGE, 3 * PAGE + 1, 1 << 25])
@pytest.mark.parametrize(("start", "size"), [(0, LENGTH), (5, 1), (PAGE - 1, 2), (PAGE, PAGE), (17, 3 * PAGE), (9, 0)])
def test_equal_regions(
    files: tuple[int, int], start: int, size: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if window < 100 < size:
        size = 100
    monkeypatch.setattr(mapped, "_WINDOW", window)
    heard: list[int] = []
    regions = Region(files[0], start, size), Region(files[1], start + 13, size)
    assert mapped.same_mapped(*regions, heard.append) and same_bytes(*regions)
    assert sum(heard) == size


@pytest.mark.parametrize("place", [0, PAGE - 1, PAGE, LENGTH - 1])
@pytest.mark.parametrize("window", [PAGE, 1 << 25])
def test_one_bit_that_differs(tmp_path: Path, place: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_WINDOW", window)
    data = bytearray(os.urandom(LENGTH))
    (tmp_path / "one").write_bytes(data)
    data[place] ^= 1
    (tmp_path / "other").write_bytes(data)
    with (tmp_path / "one").open("rb") as one, (tmp_path / "other").open("rb") as other:
        regions = Region(one.fileno(), 0, LENGTH), Region(other.fileno(), 0, LENGTH)
        assert not mapped.same_mapped(*regions) and not same_bytes(*regions)
        before, after = slice(0, place), slice(place + 1, LENGTH)
        for part in (before, after):
            parts = (Region(region.fd, part.start, part.stop - part.start) for region in regions)
            assert mapped.same_mapped(*parts)


def test_a_file_that_is_too_short(files: tuple[int, int]) -> None:
    for compare in (mapped.same_mapped, same_bytes):
        with pytest.raises(EOFError):
            compare(Region(files[0], PAGE, LENGTH), Region(files[1], 13, LENGTH))


def test_nothing_that_is_looked_at_changes(files: tuple[int, int]) -> None:
    before = [os.pread(fd, 1 << 20, 0) for fd in files]
    mapped.same_mapped(Region(files[0], 3, LENGTH - 3), Region(files[1], 16, LENGTH - 3))
    assert [os.pread(fd, 1 << 20, 0) for fd in files] == before


DTYPE, SHAPE = "F32", (37, 5, 4)


@pytest.mark.parametrize("start", [0, 3, PAGE])
def test_a_tensor_is_what_is_read(tmp_path: Path, start: int) -> None:
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    (tmp_path / "file").write_bytes(bytes(start) + values.tobytes() + b"behind")
    with (tmp_path / "file").open("rb") as file:
        region = Region(file.fileno(), start, values.nbytes)
        read, seen = (kind(region, SHAPE, DTYPE, "file") for kind in (RegionSource, mapped.MappedSource))
        for source in (read, seen):
            np.testing.assert_array_equal(source.whole(), values)
            np.testing.assert_array_equal(source.rows(4, 9), values[4:9])
            np.testing.assert_array_equal(source.flat(7, 0), values.reshape(-1)[:0])
            into = np.empty((3, 5, 4), np.float32)
            source.fill(into, 40)
            np.testing.assert_array_equal(into, values[2:5])
        for one in (read, seen):
            for other in (read, seen):
                assert one.same(20, other, 20, 100) and not one.same(20, other, 40, 100)


def test_views_outlive_their_source_and_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(np.arange(5000, dtype="<f8").tobytes())
    with (tmp_path / "file").open("rb") as file:
        view = mapped.MappedSource(Region(file.fileno(), 0, 40000), (5000,), "F64", "file").flat(4000, 1000)
    (tmp_path / "file").unlink()
    np.testing.assert_array_equal(view, np.arange(4000, 5000))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_nothing_is_mapped_of_an_empty_tensor(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (tmp_path / "file").open("rb") as file:
        source = mapped.MappedSource(Region(file.fileno(), 0, 0), (0, 4), "BF16", "file")
        assert source.whole().shape == (0, 4) and source.same(0, source, 0, 0)


def test_a_tensor_whose_file_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with (tmp_path / "file").open("rb") as file:
        source = mapped.MappedSource(Region(file.fileno(), 40, 80), (20,), "F32", "net: tensor 'a'")
        with pytest.raises(CheckpointError, match="net: tensor 'a': the file ends before byte 120; something else"):
            source.rows(0, 2)
