"""Reading and writing safetensors, byte for byte like the library."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from netgrow_cli.checkpoint import TensorInfo, create_writer, open_checkpoint
from netgrow_cli.checkpoint.dtypes import name_of
from netgrow_cli.errors import CheckpointError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    raw = torch.randint(256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def infos_of(tensors: dict[str, torch.Tensor]) -> list[TensorInfo]:
    return [TensorInfo(name, tuple(tensor.shape), str(name_of(tensor.dtype))) for name, tensor in tensors.items()]


def write_all(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> None:
    writer = create_writer("safetensors", path, infos_of(tensors), metadata)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.finish()


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
contents = st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes, st.integers(0, 99)), max_size=6)
texts = st.text(st.characters(exclude_categories=["Cs"]))
# More keys than one the library writes in a random order, and it writes no valid file of nothing but `{}`.
metadatas = st.none() | st.dictionaries(names, texts, min_size=1, max_size=1)


@settings(max_examples=60, deadline=None)
@given(contents, metadatas, st.randoms(use_true_random=False))
def test_written_files_are_the_librarys_byte_for_byte(
    content: dict[str, tuple[torch.dtype, tuple[int, ...], int]],
    metadata: dict[str, str] | None,
    order: random.Random,
) -> None:
    tensors = {name: tensor_of(*what) for name, what in content.items()}
    shuffled = list(tensors.items())
    order.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        save_file(tensors, theirs, metadata)
        write_all(ours, dict(shuffled), metadata)
        assert ours.read_bytes() == theirs.read_bytes()
        with open_checkpoint(theirs, prefix="") as checkpoint:
            assert sorted(checkpoint.tensors) == sorted(tensors)
            assert checkpoint.metadata == (metadata or {})
            for name, tensor in tensors.items():
                found = checkpoint.read(name)
                assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
                assert bytes(found.reshape(-1).view(torch.uint8).tolist()) == checkpoint.read_bytes(name)
                assert checkpoint.read_bytes(name) == bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def test_a_change_keeps_prefix_metadata_and_what_is_not_changed(tmp_path: Path) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {
        "module.fc.weight": torch.randn(4, 3),
        "module.fc.bias": torch.randn(4),
        "module.n": torch.tensor(7),
    }
    save_file(tensors, source, {"format": "pt", "who": "me"})
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.prefix == "module."
        assert checkpoint.key is None and checkpoint.tree() is None and checkpoint.format == "safetensors"
        assert set(checkpoint.tensors) == {"fc.weight", "fc.bias", "n"}
        wider = {
            name: dataclasses.replace(info, shape=(6, *info.shape[1:])) if info.shape else info
            for name, info in checkpoint.tensors.items()
        }
        writer = checkpoint.writer(out, list(wider.values()), metadata={"who": "you", "netgrow": "{}"})
        for name, info in wider.items():
            old = checkpoint.read(name)
            writer.write(name, torch.cat([old, old[:2]]) if info.shape else old)
        writer.finish()
    expected = {name: torch.cat([t, t[:2]]) if t.dim() else t for name, t in tensors.items()}
    loaded = load_file(out)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "you", "netgrow": "{}"}
    assert out.read_bytes()[8:].startswith(b'{"__metadata__":{"format":"pt","netgrow":"{}","who":"you"},')


def test_a_file_without_metadata_stays_without_and_an_empty_one_stays_empty(tmp_path: Path) -> None:
    for metadata in (None, {}):
        save_file({"w": torch.ones(2)}, tmp_path / "a", metadata)
        with open_checkpoint(tmp_path / "a") as checkpoint:
            writer = checkpoint.writer(tmp_path / "b", list(checkpoint.tensors.values()))
            writer.write("w", checkpoint.read("w"))
            writer.finish()
        assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_non_contiguous_tensors_are_written_in_row_major_order(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1:3],
        "last": torch.arange(48.0).reshape(1, 4, 3, 4).to(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    }
    write_all(tmp_path / "a", tensors, None)
    loaded = load_file(tmp_path / "a")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_wrong_shape_dtype_name_or_count_is_a_value_error(tmp_path: Path) -> None:
    writer = create_writer("safetensors", tmp_path / "a", [TensorInfo("w", (2, 3), "F32")])
    for wrong in (torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3, dtype=torch.float16)):
        with pytest.raises(ValueError, match="announced was F32"):
            writer.write("w", wrong)
    with pytest.raises(ValueError, match="'v' was not announced"):
        writer.write("v", torch.zeros(2, 3))
    with pytest.raises(ValueError, match="never written: w"):
        writer.finish()
    writer.write("w", torch.zeros(2, 3))
    with pytest.raises(ValueError, match="written twice"):
        writer.write("w", torch.zeros(2, 3))


def test_what_safetensors_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'q' is QINT8, which safetensors cannot hold"):
        create_writer("safetensors", tmp_path / "a", [TensorInfo("q", (2,), "QINT8")])
    with pytest.raises(ValueError, match="same name"):
        create_writer("safetensors", tmp_path / "a", [TensorInfo("q", (2,), "F32")] * 2)


def test_sub_byte_dtypes_are_carried_through(tmp_path: Path) -> None:
    header = (
        b'{"a":{"dtype":"F6_E2M3","shape":[2,4],"data_offsets":[0,6]},'
        b'"b":{"dtype":"F4","shape":[2,6],"data_offsets":[6,12]}}'
    )
    header += b" " * (-len(header) % 8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(12)))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("b").shape == (2, 3)
        writer = checkpoint.writer(tmp_path / "b", list(checkpoint.tensors.values()))
        for name in checkpoint.tensors:
            writer.write(name, checkpoint.read(name))
        writer.finish()
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_a_file_that_shrinks_while_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(100)}, path)
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(200)
        for read in (checkpoint.read, checkpoint.read_bytes):
            with pytest.raises(CheckpointError, match="'w': the file ended"):
                read("w")


def test_a_prefix_that_does_not_fit_and_a_key_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"net.w": torch.zeros(1), "b": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"prefix 'net\.' does not fit the tensor 'b'"):
        open_checkpoint(path, prefix="net.")
    with pytest.raises(CheckpointError, match="has no keys"):
        open_checkpoint(path, key="model")


@pytest.mark.parametrize(
    ("stored", "prefix"),
    [
        (["module.a", "module.b"], "module."),
        (["_orig_mod.a"], "_orig_mod."),
        (["_orig_mod.module.a", "_orig_mod.module.b"], "_orig_mod.module."),
        (["module._orig_mod.a"], "module._orig_mod."),
        (["module.a", "b"], ""),
        (["model.a", "model.b"], ""),
        (["module."], ""),
        ([], ""),
    ],
)
def test_wrappers_are_taken_off_when_every_name_has_them(tmp_path: Path, stored: list[str], prefix: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(1) for name in stored}, path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.prefix == prefix
        assert [prefix + name for name in checkpoint.tensors] == sorted(stored)
