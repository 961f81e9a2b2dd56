"""Torch checkpoints: what is found in them, and that a new one keeps all that was not changed."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netgrow_cli.checkpoint import Checkpoint, TensorInfo, create_writer, open_checkpoint
from netgrow_cli.checkpoint.torch_tree import REMOVED
from netgrow_cli.checkpoint.torch_writer import DeferredTensor
from netgrow_cli.errors import CheckpointError

Edit = Callable[[str, torch.Tensor], torch.Tensor]


def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def double(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Twice the rows; numbers without axes stay."""
    return torch.cat([tensor, tensor]) if tensor.dim() else tensor


def rewrite(checkpoint: Checkpoint, out: Path, edit: Edit = keep, **options: Any) -> None:
    infos = [
        dataclasses.replace(info, shape=tuple(edit(name, checkpoint.read(name)).shape))
        for name, info in checkpoint.tensors.items()
    ]
    writer = checkpoint.writer(out, infos, **options)
    for name in checkpoint.tensors:
        writer.write(name, edit(name, checkpoint.read(name)))
    writer.finish()


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def saved(tmp_path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, tmp_path / "in.pt", **options)
    return tmp_path / "in.pt"


def same(a: Any, b: Any) -> bool:
    """Equal all the way down, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def training_checkpoint() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "best": np.float64(0.5),
        "rng": (torch.get_rng_state(), np.random.RandomState(0).get_state()),
        "model_state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [{"loss": 1.0}, {"loss": float("inf")}],
        "tags": ("a", None, True, b"bytes", 2**70),
        "counts": collections.Counter("aab"),
    }


@pytest.mark.parametrize("new", [True, False])
def test_everything_but_the_changed_tensors_is_carried_over(tmp_path: Path, new: bool) -> None:
    source = training_checkpoint()
    path = saved(tmp_path, source, _use_new_zipfile_serialization=new)
    out = tmp_path / "out.pt"
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.key, checkpoint.prefix, checkpoint.format) == ("model_state_dict", "", "torch")
        assert checkpoint.tensors["0.weight"] == TensorInfo("0.weight", (4, 3, 3, 3), "F32")
        assert checkpoint.tensors["1.num_batches_tracked"] == TensorInfo("1.num_batches_tracked", (), "I64")
        rewrite(checkpoint, out, double)
    result = load(out)
    before, after = source.pop("model_state_dict"), result.pop("model_state_dict")
    assert same(source, result)
    assert type(after) is collections.OrderedDict and list(after) == list(before)
    assert after._metadata == before._metadata
    for name, tensor in before.items():
        assert torch.equal(after[name], double(name, tensor))


def test_numbers_saved_with_numpy_1_or_2_are_data(tmp_path: Path) -> None:
    """The module that numpy's scalars name moved; neither name is code to refuse."""
    path = saved(tmp_path, {"w": torch.ones(1), "best": np.float32(0.5), "history": np.arange(3)})
    moved = tmp_path / "moved.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(moved, "w") as new:
        for record in old.namelist():
            content = old.read(record)
            if record.endswith("data.pkl"):
                here, there = b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"
                here, there = (here, there) if here in content else (there, here)
                assert here in content
                content = content.replace(here, there)
            new.writestr(record, content)
    for file in (path, moved):
        with open_checkpoint(file) as checkpoint:
            assert checkpoint.tree()["best"] == np.float32(0.5)
            assert checkpoint.tree()["history"].tolist() == [0, 1, 2]


def test_the_original_is_untouched_and_the_result_opens_again(tmp_path: Path) -> None:
    path = saved(tmp_path, training_checkpoint())
    content = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        rewrite(checkpoint, tmp_path / "out.pt", double)
        assert checkpoint.tensors["0.weight"].shape == (4, 3, 3, 3)
        assert checkpoint.tree()["model_state_dict"]["0.weight"].shape == (4, 3, 3, 3)
    assert path.read_bytes() == content
    with open_checkpoint(tmp_path / "out.pt") as checkpoint:
        assert checkpoint.key == "model_state_dict"
        assert checkpoint.tensors["0.weight"].shape == (8, 3, 3, 3)


@pytest.mark.parametrize("edit", [keep, double])
def test_the_same_input_gives_the_same_bytes_whatever_the_name(tmp_path: Path, edit: Edit) -> None:
    path = saved(tmp_path, training_checkpoint())
    for name in ("one.pt", "another_name.ckpt"):
        with open_checkpoint(path) as checkpoint:
            rewrite(checkpoint, tmp_path / name, edit)
    content = (tmp_path / "one.pt").read_bytes()
    assert content == (tmp_path / "another_name.ckpt").read_bytes()
    assert b"one" not in content.replace(b"None", b"")
    assert zipfile.ZipFile(tmp_path / "one.pt").testzip() is None


def test_rewriting_a_result_changes_nothing_more(tmp_path: Path) -> None:
    first, second = tmp_path / "1.pt", tmp_path / "2.pt"
    with open_checkpoint(saved(tmp_path, training_checkpoint())) as checkpoint:
        rewrite(checkpoint, first)
    with open_checkpoint(first) as checkpoint:
        rewrite(checkpoint, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_the_content_decides_and_not_the_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    torch.save({"w": torch.zeros(1)}, path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "torch"


SD = {"w": torch.zeros(2), "b": torch.zeros(1)}
FOUND: dict[str, tuple[Any, str | None, str | None, list[str]]] = {
    "root": (SD, None, None, ["w", "b"]),
    "state_dict": ({"state_dict": SD, "epoch": 1}, None, "state_dict", ["w", "b"]),
    "model": ({"model": SD}, None, "model", ["w", "b"]),
    "net": ({"net": SD}, None, "net", ["w", "b"]),
    "any single": ({"policy": SD, "step": 1}, None, "policy", ["w", "b"]),
    "nested": ({"agent": {"model": SD}, "step": 1}, None, "agent.model", ["w", "b"]),
    "model before ema": ({"ema": {"x": torch.zeros(2)}, "model": SD}, None, "model", ["w", "b"]),
    "order of the known": ({"net": {"x": torch.zeros(2)}, "model": SD}, None, "model", ["w", "b"]),
    "known before root": ({"model": SD, "mean": torch.zeros(3)}, None, "model", ["w", "b"]),
    "loss and rng beside": (
        {"m": SD, "loss": torch.tensor(1.0), "rng": {"cpu": torch.zeros(9, dtype=torch.uint8)}},
        None,
        "m",
        ["w", "b"],
    ),
    "optimizer beside": (
        {"m": SD, "o": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}},
        None,
        "m",
        ["w", "b"],
    ),
    "one dict twice": ({"a": SD, "b": SD}, None, "a", ["w", "b"]),
    "only integers": ({"w": torch.zeros(2, dtype=torch.int8)}, None, None, ["w"]),
    "other values beside": ({**SD, "note": "x", "n": 3}, None, None, ["w", "b"]),
    "asked for": ({"ema": {"x": torch.zeros(2)}, "model": SD}, "ema", "ema", ["x"]),
    "asked for, dotted": ({"a": {"b": SD, "c": dict(SD)}}, "a.b", "a.b", ["w", "b"]),
    "asked for, dots in the key": ({"a.b": {"c": SD}, "a": {"d": dict(SD)}}, "a.b.c", "a.b.c", ["w", "b"]),
    "root asked for": ({"mean": torch.zeros(3), "model": SD}, "", None, ["mean"]),
    "wrapped": ({"model": {f"module.{k}": v for k, v in SD.items()}}, None, "model", ["w", "b"]),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_state_dict_is_found(tmp_path: Path, case: str) -> None:
    value, key, found, names = FOUND[case]
    with open_checkpoint(saved(tmp_path, value), key=key) as checkpoint:
        assert checkpoint.key == found
        assert list(checkpoint.tensors) == names
        rewrite(checkpoint, tmp_path / "out.pt", double)
        infos = checkpoint.tensors
    with open_checkpoint(tmp_path / "out.pt", key=key) as checkpoint:
        assert [info.shape for info in checkpoint.tensors.values()] == [(2 * info.shape[0],) for info in infos.values()]


def test_two_candidates_are_an_error_that_lists_them(tmp_path: Path) -> None:
    path = saved(tmp_path, {"actor": SD, "critic": {"x": torch.zeros(2)}, "epoch": 1})
    with pytest.raises(CheckpointError, match=r"'actor' \(2 tensors\), 'critic' \(1 tensors\).*key: actor"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"key 'modle' is not in the file; state dicts are at 'actor'"):
        open_checkpoint(path, key="modle")
    with pytest.raises(CheckpointError, match="key 'epoch' holds no tensors"):
        open_checkpoint(path, key="epoch")
    with pytest.raises(CheckpointError, match=r"prefix 'net\.' does not fit the tensor 'w'"):
        open_checkpoint(path, key="actor", prefix="net.")


def tied_model() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


@pytest.mark.parametrize("edit", [keep, double])
def test_tied_tensors_stay_one_storage(tmp_path: Path, edit: Edit) -> None:
    with open_checkpoint(saved(tmp_path, tied_model().state_dict())) as checkpoint:
        assert checkpoint.tensors["embed.weight"].tied_to is None
        assert checkpoint.tensors["head.weight"].tied_to == "embed.weight"
        expected = edit("", checkpoint.read("embed.weight"))
        rewrite(checkpoint, tmp_path / "out.pt", edit)
    result = load(tmp_path / "out.pt")
    assert torch.equal(result["head.weight"], expected)
    assert result["head.weight"].data_ptr() == result["embed.weight"].data_ptr()
    assert sum("/data/" in name for name in zipfile.ZipFile(tmp_path / "out.pt").namelist()) == 1


def test_a_tie_follows_the_announced_tensors(tmp_path: Path) -> None:
    """Skipped names take the first one's values; other values are an error; without tied_to there is no tie."""
    with open_checkpoint(saved(tmp_path, tied_model().state_dict())) as checkpoint:
        wide = torch.randn(8, 4)
        infos = [dataclasses.replace(info, shape=(8, 4)) for info in checkpoint.tensors.values()]
        writer = checkpoint.writer(tmp_path / "skipped.pt", infos)
        writer.write("embed.weight", wide)
        writer.finish()
        writer = checkpoint.writer(tmp_path / "different.pt", infos)
        with pytest.raises(ValueError, match="must be written before"):
            writer.write("head.weight", wide)
        writer.write("embed.weight", wide)
        with pytest.raises(ValueError, match="came with other values"):
            writer.write("head.weight", wide + 1)
        writer = checkpoint.writer(tmp_path / "untied.pt", [dataclasses.replace(info, tied_to=None) for info in infos])
        writer.write("embed.weight", wide)
        writer.write("head.weight", wide + 1)
        writer.finish()
        same_shape = checkpoint.writer(tmp_path / "half.pt", list(checkpoint.tensors.values()))
        same_shape.write("embed.weight", checkpoint.read("embed.weight") + 1)
        with pytest.raises(ValueError, match="came with other values"):
            same_shape.write("head.weight", checkpoint.read("head.weight"))
    skipped, untied = load(tmp_path / "skipped.pt"), load(tmp_path / "untied.pt")
    assert skipped["head.weight"].data_ptr() == skipped["embed.weight"].data_ptr()
    assert torch.equal(skipped["head.weight"], wide)
    assert torch.equal(untied["head.weight"], untied["embed.weight"] + 1)


def test_views_of_one_storage_are_not_tied_and_stay_views(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    views = {"a": whole[:6], "b": whole[6:], "c": whole.reshape(3, 4), "t": whole.reshape(3, 4).t()}
    with open_checkpoint(saved(tmp_path, views)) as checkpoint:
        assert all(info.tied_to is None for info in checkpoint.tensors.values())
        rewrite(checkpoint, tmp_path / "kept.pt")
        rewrite(checkpoint, tmp_path / "some.pt", lambda name, t: double(name, t) if name == "b" else t)
    kept, some = load(tmp_path / "kept.pt"), load(tmp_path / "some.pt")
    assert same(kept, dict(views))
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept.values()}) == 1
    assert torch.equal(some["b"], double("b", whole[6:]))
    assert some["b"].untyped_storage().nbytes() == 12 * 4
    assert torch.equal(some["t"], views["t"])


def test_an_edited_view_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    huge = torch.randn(100_000)
    with open_checkpoint(saved(tmp_path, {"a": huge[5:9], "b": huge[::25_000]})) as checkpoint:
        rewrite(checkpoint, tmp_path / "out.pt", lambda name, tensor: tensor[1:3])
    result = load(tmp_path / "out.pt")
    assert torch.equal(result["a"], huge[6:8]) and torch.equal(result["b"], huge[25_000:75_000:25_000])
    assert (tmp_path / "out.pt").stat().st_size < 5000


def test_strides_survive(tmp_path: Path) -> None:
    state = {
        "last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "t": torch.randn(3, 5).t(),
        "expanded": torch.randn(1, 3).expand(4, 3),
    }
    with open_checkpoint(saved(tmp_path, state)) as checkpoint:
        rewrite(checkpoint, tmp_path / "kept.pt")
        rewrite(checkpoint, tmp_path / "edited.pt", lambda name, tensor: tensor + 1)
    assert same(load(tmp_path / "kept.pt"), state)
    edited = load(tmp_path / "edited.pt")
    assert edited["last"].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(edited[name], tensor + 1) for name, tensor in state.items())


def test_parameters_stay_parameters(tmp_path: Path) -> None:
    state = {
        "p": nn.Parameter(torch.randn(2)),
        "frozen": nn.Parameter(torch.randn(2), requires_grad=False),
        "t": torch.randn(2),
        "g": torch.randn(2, requires_grad=True),
    }
    with open_checkpoint(saved(tmp_path, state)) as checkpoint:
        assert type(checkpoint.read("p")) is torch.Tensor and not checkpoint.read("p").requires_grad
        rewrite(checkpoint, tmp_path / "out.pt", double)
        rewrite(checkpoint, tmp_path / "kept.pt")
    for name in ("out.pt", "kept.pt"):
        result = load(tmp_path / name)
        assert [type(tensor) for tensor in result.values()] == [type(tensor) for tensor in state.values()]
        assert [t.requires_grad for t in result.values()] == [True, False, False, True]


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_carried_through(tmp_path: Path) -> None:
    state = {
        "q": torch.quantize_per_tensor(torch.tensor([0.1, 0.5]), 0.1, 3, torch.qint8),
        "c": torch.quantize_per_channel(torch.ones(2, 2), torch.tensor([0.1, 0.2]), torch.zeros(2), 0, torch.quint8),
        "w": torch.ones(2),
    }
    with open_checkpoint(saved(tmp_path, state)) as checkpoint:
        assert [info.dtype for info in checkpoint.tensors.values()] == ["QINT8", "QUINT8", "F32"]
        assert checkpoint.read_bytes("q")[:2] == bytes([4, 8])
        rewrite(checkpoint, tmp_path / "out.pt", lambda name, t: double(name, t) if name == "w" else t)
    result = load(tmp_path / "out.pt")
    assert torch.equal(result["q"], state["q"]) and result["q"].q_zero_point() == 3
    assert torch.equal(result["c"].dequantize(), state["c"].dequantize())


def test_every_dtype_survives_a_change(tmp_path: Path) -> None:
    kinds = {
        "F64 F32 F16 BF16": "float64 float32 float16 bfloat16",
        "I64 I32 I16 I8": "int64 int32 int16 int8",
        "U64 U32 U16 U8 BOOL": "uint64 uint32 uint16 uint8 bool",
        "F8_E4M3 F8_E5M2 F8_E8M0": "float8_e4m3fn float8_e5m2 float8_e8m0fnu",
        "C64 C128": "complex64 complex128",
    }
    state = {
        ours: torch.tensor([1, 0, 1]).to(getattr(torch, theirs))
        for line in kinds.items()
        for ours, theirs in zip(line[0].split(), line[1].split(), strict=True)
    }
    state["F4"] = torch.tensor([1, 2, 3], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with open_checkpoint(saved(tmp_path, state)) as checkpoint:
        assert {name: info.dtype for name, info in checkpoint.tensors.items()} == {name: name for name in state}
        assert checkpoint.tensors["F4"].shape == (6,)
        writer = checkpoint.writer(tmp_path / "out.pt", list(checkpoint.tensors.values()))
        for name in checkpoint.tensors:
            writer.write(name, checkpoint.read(name).clone())
        writer.finish()
    result = load(tmp_path / "out.pt")
    for name, tensor in state.items():
        assert result[name].dtype == tensor.dtype
        assert torch.equal(result[name].view(torch.uint8), tensor.view(torch.uint8))


def test_replacing_moments_and_removing_an_optimizer(tmp_path: Path) -> None:
    path = saved(tmp_path, training_checkpoint())
    with open_checkpoint(path) as checkpoint:
        old = checkpoint.tree()["optimizer"]["state"][0]
        replace = {
            ("optimizer", "state", 0, "exp_avg"): torch.ones(8, 3, 3, 3),
            ("optimizer", "state", 1): {"step": torch.tensor(9.0), "exp_avg": DeferredTensor(lambda: torch.ones(8))},
            ("optimizer", "param_groups", 0, "lr"): 0.5,
            ("history",): REMOVED,
            ("history_is_no_path",): None,
        }
        with pytest.raises(ValueError, match=r"nothing is at \('history_is_no_path',\) to replace"):
            rewrite(checkpoint, tmp_path / "out.pt", replace=replace)
        del replace[("history_is_no_path",)]
        rewrite(checkpoint, tmp_path / "out.pt", replace=replace)
        rewrite(checkpoint, tmp_path / "dropped.pt", double, replace={("optimizer",): REMOVED})
        with pytest.raises(ValueError, match="below another path"):
            rewrite(
                checkpoint,
                tmp_path / "x.pt",
                replace={("optimizer",): None, ("optimizer", "state"): None},
            )
        with pytest.raises(ValueError, match="one of the model's tensors"):
            rewrite(checkpoint, tmp_path / "x.pt", replace={("model_state_dict", "0.bias"): None})
        result, dropped = load(tmp_path / "out.pt"), load(tmp_path / "dropped.pt")
        state = result["optimizer"]["state"]
        assert torch.equal(state[0]["exp_avg"], torch.ones(8, 3, 3, 3))
        assert torch.equal(state[0]["exp_avg_sq"], old["exp_avg_sq"])
        assert state[0]["step"] == old["step"]
        assert same(state[1], {"step": torch.tensor(9.0), "exp_avg": torch.ones(8)})
        assert result["optimizer"]["param_groups"][0]["lr"] == 0.5
        assert list(result) == [key for key in checkpoint.tree() if key != "history"]
        assert list(dropped) == [key for key in checkpoint.tree() if key != "optimizer"]
        assert checkpoint.tree()["optimizer"]["state"][0] is old


def test_large_tensors_of_every_kind_of_strides(tmp_path: Path) -> None:
    """Large enough for a stand-in without memory."""
    state = {
        "plain": torch.randn(200, 300),
        "last": torch.randn(40, 30, 8, 8).to(memory_format=torch.channels_last),
        "t": torch.randn(300, 200).t(),
        "half": torch.randn(300, 200).bfloat16(),
        "bool": torch.randn(300, 300) > 0,
        "complex": torch.randn(100, 200, dtype=torch.complex64),
    }
    with open_checkpoint(saved(tmp_path, state)) as checkpoint:
        rewrite(checkpoint, tmp_path / "out.pt", double)
        rewrite(checkpoint, tmp_path / "cloned.pt", lambda name, tensor: tensor.clone())
    result = load(tmp_path / "out.pt")
    assert all(torch.equal(result[name], double(name, tensor)) for name, tensor in state.items())
    assert same(load(tmp_path / "cloned.pt"), state)


MEMORY = """
import dataclasses, sys, torch
from pathlib import Path
from netgrow_cli.checkpoint import open_checkpoint

def in_use():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    infos = [dataclasses.replace(info, shape=(257, 1024)) for info in checkpoint.tensors.values()]
    writer = checkpoint.writer(Path(sys.argv[2]), infos)
    before = most = in_use()
    for name in checkpoint.tensors:
        tensor = checkpoint.read(name)
        writer.write(name, torch.cat([tensor, tensor[:1]]))
        most = max(most, in_use())
    writer.finish()
print(max(most, in_use()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell memory in use")
def test_a_change_of_all_tensors_needs_the_memory_of_one(tmp_path: Path) -> None:
    """In a process whose allocator gives freed memory back at once, so that only what is held counts."""
    path = saved(tmp_path, {f"layer{i}": torch.ones(256, 1024) for i in range(40)})  # 40 MB
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, path, tmp_path / "out.pt"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert int(done.stdout) < 10_000  # kB


def test_one_dict_at_two_places_changes_at_both(tmp_path: Path) -> None:
    state = {"w": torch.ones(2)}
    with open_checkpoint(saved(tmp_path, {"model": state, "again": (state, 1)})) as checkpoint:
        rewrite(checkpoint, tmp_path / "out.pt", double)
    result = load(tmp_path / "out.pt")
    assert result["again"][0] is result["model"]
    assert result["model"]["w"].shape == (4,)


def test_wrong_writes_are_value_errors(tmp_path: Path) -> None:
    with open_checkpoint(saved(tmp_path, SD)) as checkpoint:
        infos = list(checkpoint.tensors.values())
        with pytest.raises(ValueError, match="same names in the same order"):
            checkpoint.writer(tmp_path / "x", infos[::-1])
        writer = checkpoint.writer(tmp_path / "x", infos)
        with pytest.raises(ValueError, match="announced was F32"):
            writer.write("w", torch.zeros(3))
        with pytest.raises(ValueError, match="announced was F32"):
            writer.write("w", torch.zeros(2, dtype=torch.float64))
        writer.write("w", checkpoint.read("w"))
        with pytest.raises(ValueError, match="written twice"):
            writer.write("w", checkpoint.read("w"))
        with pytest.raises(ValueError, match="never written: b"):
            writer.finish()


def test_a_fresh_file_is_a_plain_state_dict(tmp_path: Path) -> None:
    infos = [TensorInfo("a", (2, 3), "BF16"), TensorInfo("b", (2, 3), "BF16", tied_to="a"), TensorInfo("c", (0,), "I8")]
    value = torch.randn(3, 2).t().bfloat16()
    writer = create_writer("torch", tmp_path / "out", infos)
    writer.write("a", value)
    writer.write("b", value)
    writer.write("c", torch.zeros(0, dtype=torch.int8))
    writer.finish()
    result = torch.load(tmp_path / "out", weights_only=True)
    assert type(result) is collections.OrderedDict and list(result) == ["a", "b", "c"]
    assert torch.equal(result["a"], value) and result["b"].data_ptr() == result["a"].data_ptr()
    with pytest.raises(ValueError, match="unknown format"):
        create_writer("gguf", tmp_path / "x", infos)


def test_records_are_aligned_and_read_by_the_fast_path_of_torch(tmp_path: Path) -> None:
    with open_checkpoint(saved(tmp_path, training_checkpoint()["model_state_dict"])) as checkpoint:
        rewrite(checkpoint, tmp_path / "out.pt", double)
        expected = {name: double(name, checkpoint.read(name)) for name in checkpoint.tensors}
    from torch.utils.serialization import config

    for fast in (False, True):
        config.load.calculate_storage_offsets = fast
        try:
            result = torch.load(tmp_path / "out.pt", mmap=True, weights_only=True)
        finally:
            config.load.calculate_storage_offsets = False
        assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())
    content = (tmp_path / "out.pt").read_bytes()
    for name in ("0.weight", "3.bias"):
        raw = bytes(expected[name].reshape(-1).view(torch.uint8).tolist())
        assert content.index(raw) % 64 == 0
