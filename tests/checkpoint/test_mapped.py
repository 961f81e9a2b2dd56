"""Regions compared where the cache has them: the same answer as when they are read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netgrow_cli.checkpoint import mapped
from netgrow_cli.checkpoint.transfer import same_bytes
from netgrow_cli.checkpoint.types import Region

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
