"""Tensors streamed in blocks of rows are byte for byte those that were edited at once, and fold back in blocks."""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import netgrow_cli
from netgrow_cli.checkpoint import transfer
from netgrow_cli.checkpoint.mapped import MappedSource
from netgrow_cli.checkpoint.source import ArraySource, RegionSource, Source, tensor_source
from netgrow_cli.checkpoint.types import Region
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof import foldback
from netgrow_cli.proof.foldback import tensor_folds
from netgrow_cli.surgery import blocks as blocks_module
from netgrow_cli.surgery import edit as edit_module
from netgrow_cli.surgery.blocks import blocks, divisible
from netgrow_cli.surgery.change import WidthChange, expand, merge, prune, split
from netgrow_cli.surgery.edit import Draws, edited
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.surgery.stream import edit_into
from netgrow_cli.surgery.tensor_edits import TensorEdit
from tests.equivalence.edits import save
from tests.equivalence.networks import build

KINDS = [RegionSource, MappedSource] if sys.platform == "linux" else [RegionSource]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture(params=[1, 1 << 10], ids=["short runs", "long runs"])
def small_blocks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(blocks_module, "_LONG", request.param)
    for module in (edit_module, blocks_module, foldback):
        monkeypatch.setattr(module, "ELEMENTS", 12)
    monkeypatch.setattr(edit_module.row_blocks, "__defaults__", (12,))


def in_file(folder: Path, source: Source) -> RegionSource:
    path = folder / "old"
    path.write_bytes(b"before" + source.whole().tobytes() + b"behind")
    descriptor = os.open(path, os.O_RDONLY)
    return RegionSource(Region(descriptor, 6, source.whole().nbytes), source.shape, source.dtype, "old")


def streamed(folder: Path, source: Source, edit: TensorEdit, seed: int) -> np.ndarray[Any, Any]:
    size = int(np.prod(edit.after)) * source.whole().itemsize
    path = folder / "new"
    path.write_bytes(b"\x55" * (size + 20))
    descriptor = os.open(path, os.O_RDWR)
    told: list[int] = []
    edit_into(source, edit, seed, Region(descriptor, 10, size), told.append)
    os.close(descriptor)
    data = path.read_bytes()
    assert data[:10] == data[-10:] == b"\x55" * 10
    assert sum(told) == size
    return np.frombuffer(data[10:-10], source.whole().dtype).reshape(edit.after)


def folded_in_files(folder: Path, old: RegionSource, edit: TensorEdit, values: np.ndarray[Any, Any]) -> list[bool]:
    """Whether a tensor in a file folds back, read and mapped. (In both files it stands at an odd place.)"""
    path = folder / "folded"
    path.write_bytes(b"at" + values.tobytes())
    found = []
    with path.open("rb") as file:
        region = Region(file.fileno(), 2, values.nbytes)
        for kind in KINDS:
            told: list[int] = []
            one, other = kind(old.region, old.shape, old.dtype, "old"), kind(region, edit.after, old.dtype, "new")
            found.append(tensor_folds(one, other, edit, told.append))
            assert not found[-1] or sum(told) == values.nbytes
    return found


def changes_of(rng: random.Random, free: Sequence[tuple[int, int]]) -> list[WidthChange]:
    found = []
    for width, size in rng.sample(list(free), rng.randint(1, min(3, len(free)))):
        units = rng.sample(range(size), rng.randint(1, max(1, size - 1)))
        ways = [
            expand(width, size, rng.randint(1, 5), rng.choice(("match", "kaiming", "antisymmetric"))),
            split(width, size, units, rng.choice((0.0, 0.3)), rng.choice((2, 3))),
            prune(width, size, units) if size > 1 else expand(width, size, 1),
            merge(width, size, [(units[0], (units[0] + 1) % size, 1.5)]) if size > 1 else expand(width, size, 1),
        ]
        found.append(rng.choice(ways))
    return found


def edits_of(path: Path, rng: random.Random) -> tuple[dict[str, Source], dict[str, TensorEdit]]:
    with opened(path, Options()) as job:
        free = [(i.width.id, i.size) for i in job.topology.widths.values() if i.frozen is None]
        try:
            plan = make_plan(job.topology, job.checkpoint.tensors, changes_of(rng, free), zero_units=True)
        except (netgrow_cli.Refused, ValueError):
            return {}, {}
        return {name: tensor_source(job.checkpoint.read(name).clone()) for name in plan.edits}, dict(plan.edits)


def test_streamed_and_whole_give_the_same_bytes(tmp_path: Path, small_blocks: None) -> None:
    rng, seen, divided, several = random.Random(5), 0, 0, 0
    for seed in range(60):
        built = build(seed)
        dtype = rng.choice(list(DTYPES.values()))
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in built.state.items()}
        sources, edits = edits_of(save(tmp_path / str(seed), built.text, state), rng)
        for name, edit in edits.items():
            source = in_file(tmp_path, sources[name])
            whole = edited(source.whole(), edit, Draws(seed, edit, source))
            assert whole.shape == edit.after
            for one in (source, sources[name]):  # from a file, and from memory
                np.testing.assert_array_equal(streamed(tmp_path, one, edit, seed), whole)
            made = ArraySource(whole, source.dtype)
            if np.isfinite(whole.astype(float)).all():
                assert tensor_folds(source, made, edit)
                if whole.size and not edit.rescales:
                    wrong = whole.copy()
                    wrong.reshape(-1)[rng.randrange(wrong.size)] += 1
                    whole_found = foldback._folds(source.whole(), wrong, edit, source.dtype)
                    assert tensor_folds(source, ArraySource(wrong, source.dtype), edit) is whole_found
                    for values, found in ((whole, True), (wrong, whole_found)):
                        assert set(folded_in_files(tmp_path, source, edit, values)) == {found}
            seen, divided = seen + 1, divided + divisible(edit)
            several += divisible(edit) and len(list(blocks(edit))) > 1
            os.close(source.region.fd)
    assert seen > 200 and divided > 120 and several > 60 and divided < seen


def test_a_large_tensor_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """Rows are read as they are needed; the largest piece is a block."""
    state = {"a.weight": torch.randn(4096, 1024), "a.bias": torch.randn(4096), "b.weight": torch.randn(8, 4096)}
    path = tmp_path / "net.safetensors"
    save_file({**state, "b.bias": torch.zeros(8)}, path)
    with opened(path, Options(activation="relu")) as job:
        width = next(i for i in job.topology.widths.values() if i.size == 4096)
        for change in (expand(width.width.id, 4096, 64), prune(width.width.id, 4096, range(0, 4096, 3))):
            edit = make_plan(job.topology, job.checkpoint.tensors, [change], zero_units=True).edits["a.weight"]
            read: list[int] = []

            class Watched(RegionSource):
                def flat(self, start: int, count: int, read: list[int] = read) -> Any:
                    read.append(count)
                    return super().flat(start, count)

            region = job.checkpoint.region("a.weight")
            assert region is not None
            source = Watched(region, (4096, 1024), "F32", "a.weight")
            with (tmp_path / "out").open("w+b") as out:
                size = int(np.prod(edit.after)) * 4
                edit_into(source, edit, 0, Region(out.fileno(), 0, size))
                new = RegionSource(Region(out.fileno(), 0, size), edit.after, "F32", "out")
                assert tensor_folds(source, new, edit)
            assert max(read, default=0) <= 1 << 20


def test_an_output_is_what_the_library_would_have_written(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(6, 4), "a.bias": torch.randn(6), "b.weight": torch.randn(3, 6)}
    path = tmp_path / "net.safetensors"
    save_file({**state, "b.bias": torch.zeros(3)}, path, {"format": "pt"})
    out = netgrow_cli.expand(path, layer="a", add=3, activation="relu").output
    with opened(out, Options()) as job:
        metadata = dict(job.checkpoint.metadata)
    save_file(load_file(out), tmp_path / "again.safetensors", metadata)
    ours, theirs = out.read_bytes(), (tmp_path / "again.safetensors").read_bytes()
    start = 8 + int.from_bytes(ours[:8], "little")
    assert ours[:8] == theirs[:8] and ours[start:] == theirs[start:]
    # (The library writes its metadata in no order.)
    one, other = (json.loads(data[8:start]) for data in (ours, theirs))
    assert one == other and list(one) == list(other)


# -- bytes from file to file ---------------------------------------------------------------------------------------


def files(folder: Path, size: int) -> tuple[bytes, Region, Region]:
    data = random.Random(size).randbytes(size)
    (folder / "one").write_bytes(b"xy" + data + b"z")
    (folder / "other").write_bytes(b"")
    return data, *(Region(os.open(folder / name, os.O_RDWR), start, size) for name, start in (("one", 2), ("other", 7)))


@pytest.mark.parametrize("size", (0, 1, 1000, (1 << 20) + 17))
@pytest.mark.parametrize("kernel", ("can", "cannot", "stops", "is absent"))
def test_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, size: int) -> None:
    data, old, new = files(tmp_path, size)
    calls = 0

    def copies(*given: int) -> int:
        nonlocal calls
        calls += 1
        if kernel == "cannot" or calls > 1:
            raise OSError(errno.EXDEV, "between file systems")
        source, target, count, start, to = given
        return os.pwrite(target, os.pread(source, min(count, 100), start), to)

    if kernel in ("cannot", "stops"):
        monkeypatch.setattr(os, "copy_file_range", copies, raising=False)
    if kernel == "is absent":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    told: list[int] = []
    transfer.copy(old, new, told.append)
    assert os.pread(new.fd, size, 7) == data and sum(told) == size


def test_copy_of_a_file_that_became_shorter(tmp_path: Path) -> None:
    _, old, new = files(tmp_path, 1000)
    os.truncate(tmp_path / "one", 500)
    with pytest.raises(EOFError):
        transfer.copy(old, new)


@pytest.mark.parametrize("short", (False, True))
def test_read_scattered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool) -> None:
    data, old, _ = files(tmp_path, 5000)
    if short and hasattr(os, "preadv"):
        real = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, into, at: real(fd, [into[0][:3]], at) if len(into[0]) else 0)
    buffers = [memoryview(bytearray(5)) for _ in range(1000)]
    transfer.read_scattered(old.fd, old.start, buffers)
    assert b"".join(map(bytes, buffers)) == data


def test_in_parallel_gives_results_in_order_and_the_error() -> None:
    assert list(transfer.in_parallel(lambda n: n * n, list(range(50)))) == [n * n for n in range(50)]

    def fails(n: int) -> int:
        if n == 7:
            raise ValueError("seven")
        return n

    with pytest.raises(ValueError, match="seven"):
        list(transfer.in_parallel(fails, list(range(50))))
