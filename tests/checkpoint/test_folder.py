"""Folders with shards: what is refused, what is read, and that new shards are those that the library would write."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from netgrow_cli.checkpoint import Checkpoint, TensorInfo, checkpoint_path, open_checkpoint
from netgrow_cli.checkpoint.sharding import parse_size, split
from netgrow_cli.errors import CheckpointError, UsageError

SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")
INDEX = "model.safetensors.index.json"


def states() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "b.weight": torch.randn(5, 3, generator=generator),
            "a.weight": torch.randn(2, 3, generator=generator).bfloat16(),
        },
        {"c.count": torch.arange(4), "c.scalar": torch.tensor(2.5), "c.none": torch.empty(0, 3)},
        {"d": torch.randn(7, generator=generator).half(), "e": torch.ones(1)},
    ]


def sharded(folder: Path, parts: list[dict[str, torch.Tensor]] | None = None, **more: Any) -> Path:
    """A folder with shards and their index; `more` goes into the index, `weight_map` over its own."""
    folder.mkdir(exist_ok=True)
    parts = parts or states()
    for file, part in zip(SHARDS, parts, strict=False):
        save_file(part, folder / file, metadata={"number": file[10]})
    size = sum(tensor.nbytes for part in parts for tensor in part.values())
    count = sum(tensor.numel() for part in parts for tensor in part.values())
    weight_map = {name: file for file, part in zip(SHARDS, parts, strict=False) for name in part}
    weight_map |= more.pop("weight_map", {})
    metadata = {"total_size": size, "total_parameters": count, "by": "us"}
    index = {"metadata": metadata, "weight_map": {n: f for n, f in weight_map.items() if f is not None}, **more}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def copied(checkpoint: Checkpoint, out: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Every tensor to a new folder, by the way that the writer offers; some with another shape, in zeros."""
    out.mkdir()
    infos = [
        TensorInfo(info.name, (shapes or {}).get(info.name, info.shape), info.dtype, info.tied_to)
        for info in checkpoint.tensors.values()
    ]
    writer = checkpoint.writer(out, infos)
    for info in infos:
        tensor = checkpoint.read(info.name)
        writer.write(info.name, tensor if tensor.shape == info.shape else torch.zeros(info.shape, dtype=tensor.dtype))
    writer.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_one_checkpoint(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    for path in (folder, folder / INDEX, Path(f"{folder}/")):
        with open_checkpoint(path) as checkpoint:
            assert (checkpoint.path, checkpoint.format, checkpoint.key) == (folder, "safetensors", None)
            assert list(checkpoint.tensors) == ["b.weight", "a.weight", "c.count", "c.none", "c.scalar", "e", "d"]
            for part in states():
                for name in part:
                    assert torch.equal(checkpoint.read(name), part[name])
                    region = checkpoint.region(name)
                    assert region is not None and region.size == part[name].nbytes
                    assert len(checkpoint.read_bytes(name)) == region.size


def test_the_same_tensors_give_the_same_files(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    with open_checkpoint(folder) as checkpoint:
        copied(checkpoint, tmp_path / "out")
    assert {name: data for name, data in contents(tmp_path / "out").items() if name != INDEX} == {
        name: data for name, data in contents(folder).items() if name != INDEX
    }
    assert json.loads((tmp_path / "out" / INDEX).read_text()) == json.loads((folder / INDEX).read_text())


def test_changed_shapes_stay_in_their_shard_and_count(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", more_of="it")
    with open_checkpoint(folder) as checkpoint:
        copied(checkpoint, tmp_path / "out", {"b.weight": (9, 3), "d": (2,)})
    old, new = (json.loads((place / INDEX).read_text()) for place in (folder, tmp_path / "out"))
    assert new["weight_map"] == old["weight_map"] and new["more_of"] == "it"
    assert new["metadata"] == {
        "by": "us",
        "total_size": old["metadata"]["total_size"] + 4 * 3 * 4 - 5 * 2,
        "total_parameters": old["metadata"]["total_parameters"] + 4 * 3 - 5,
    }
    library = tmp_path / "library.safetensors"
    for file in SHARDS:
        written = load_file(tmp_path / "out" / file)
        save_file(written, library, metadata={"number": file[10]})
        assert library.read_bytes() == (tmp_path / "out" / file).read_bytes()


@pytest.mark.parametrize("size", [1, 30, 70, 10**6])
def test_sharding_anew_is_that_of_the_library(tmp_path: Path, size: int) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = sharded(tmp_path / "m")
    with open_checkpoint(folder, shard_size=size) as checkpoint:
        state = {name: checkpoint.read(name) for name in checkpoint.tensors}
        copied(checkpoint, tmp_path / "out")
    theirs = split_torch_state_dict_into_shards(
        state, max_shard_size=size, filename_pattern="model{suffix}.safetensors"
    )
    found = contents(tmp_path / "out")
    assert set(found) - {INDEX} == set(theirs.filename_to_tensors)
    assert (INDEX in found) == theirs.is_sharded
    if theirs.is_sharded:
        index = json.loads(found[INDEX])
        assert index["weight_map"] == theirs.tensor_to_filename
        assert index["metadata"]["total_size"] == theirs.metadata["total_size"]
    library = tmp_path / "library.safetensors"
    for file, names in theirs.filename_to_tensors.items():
        save_file({name: state[name] for name in names}, library, metadata={"number": "3"})
        assert library.read_bytes() == found[file]
    with open_checkpoint(tmp_path / "out") as again:
        assert {name: bytes(again.read_bytes(name)) for name in again.tensors} == {
            name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in state.items()
        }


@pytest.mark.parametrize("ending", ["", INDEX.removeprefix("model.safetensors")])
@pytest.mark.parametrize("base", ["pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_other_names(tmp_path: Path, base: str, ending: str) -> None:
    state = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.ones(2)}
    write = torch.save if base.endswith(".bin") else save_file
    if ending:
        stem, _, end = base.rpartition(".")
        names = [f"{stem}-0000{n}-of-00002.{end}" for n in (1, 2)]
        for name, key in zip(names, state, strict=True):
            write({key: state[key]}, tmp_path / name)
        index = {"metadata": {}, "weight_map": dict(zip(state, names, strict=True))}
        (tmp_path / (base + ending)).write_text(json.dumps(index))
    else:
        write(state, tmp_path / base)
    out = tmp_path / "out"
    with open_checkpoint(tmp_path) as checkpoint:
        assert {name: checkpoint.read(name).tolist() for name in checkpoint.tensors} == {
            name: tensor.tolist() for name, tensor in state.items()
        }
        copied(checkpoint, out, {"v": (5,)})
    assert {path.name for path in out.iterdir()} == {path.name for path in tmp_path.iterdir()} - {"out"}
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.tensors["v"].shape == (5,) and torch.equal(checkpoint.read("w"), state["w"])


def test_tied_tensors_of_a_torch_shard_stay_tied(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    torch.save({"a": weight, "b": weight, "c": torch.ones(5)}, tmp_path / "pytorch_model.bin")
    for size, count in ((None, 1), (50, 2)):
        with open_checkpoint(tmp_path, shard_size=size) as checkpoint:
            assert checkpoint.tensors["b"].tied_to == "a"
            copied(checkpoint, tmp_path / f"out{count}", {"a": (6, 3), "b": (6, 3)})
        files = sorted((tmp_path / f"out{count}").glob("*.bin"))
        assert len(files) == count
        state = torch.load(files[0])
        assert state["a"].data_ptr() == state["b"].data_ptr() and state["a"].shape == (6, 3)
        if count > 1:
            index = json.loads((tmp_path / "out2" / "pytorch_model.bin.index.json").read_text())
            assert index["metadata"]["total_size"] == 4 * (18 + 5)


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path: Path) -> None:
    table = torch.randn(8, 4)
    parts = [{"lm_head.weight": table.clone()}, {"model.embed_tokens.weight": table}]
    folder = sharded(tmp_path / "m", parts)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["model.embed_tokens.weight"].tied_to == "lm_head.weight"
        copied(checkpoint, tmp_path / "out")
    assert contents(tmp_path / "out")[SHARDS[0]] == contents(folder)[SHARDS[0]]  # what was there twice is there twice
    assert contents(tmp_path / "out")[SHARDS[1]] == contents(folder)[SHARDS[1]]
    (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["model.embed_tokens.weight"].tied_to is None
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    parts[0]["lm_head.weight"][-1, -1] += 1
    with open_checkpoint(sharded(folder, parts)) as checkpoint:
        assert checkpoint.tensors["model.embed_tokens.weight"].tied_to is None


def test_wrappers_are_taken_off_over_all_shards(tmp_path: Path) -> None:
    parts = [{f"module.{name}": tensor for name, tensor in part.items()} for part in states()]
    folder = sharded(tmp_path / "m", parts)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.prefix == "module." and "d" in checkpoint.tensors
        copied(checkpoint, tmp_path / "out")
    assert contents(tmp_path / "out")[SHARDS[2]] == contents(folder)[SHARDS[2]]
    parts[1]["plain"] = torch.ones(1)
    with open_checkpoint(sharded(tmp_path / "n", parts)) as checkpoint:
        assert checkpoint.prefix == ""


def test_links_as_in_a_cache(tmp_path: Path) -> None:
    folder, blobs = sharded(tmp_path / "m"), tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(list(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / "blobs" / str(number))
    with open_checkpoint(folder) as checkpoint:
        assert len(checkpoint.tensors) == 7


def test_a_tensor_that_the_index_forgot_is_loaded_as_the_library_does(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", weight_map={"d": None})
    with open_checkpoint(folder) as checkpoint:
        assert "d" in checkpoint.tensors
        copied(checkpoint, tmp_path / "out")
    assert json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]["d"] == SHARDS[2]


def test_a_single_file_wins_as_in_the_library(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file({"only": torch.ones(2)}, folder / "model.safetensors")
    torch.save({"torch": torch.ones(2)}, folder / "pytorch_model.bin")
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["only"]
    with pytest.raises(CheckpointError, match=r"model\.safetensors lies beside it, and loaders take that one"):
        open_checkpoint(folder / INDEX)


def put(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / INDEX).write_text(text)


def of(weight_map: Any) -> Callable[[Path], Any]:
    return put(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change(**more: Any) -> Callable[[Path], Any]:
    return lambda folder: sharded(folder, **more)


def extra(folder: Path) -> None:
    part = states()[2] | {"a.weight": torch.ones(2)}
    save_file(part, folder / SHARDS[2])


@pytest.mark.parametrize(
    ("spoil", "says"),
    {
        "no json": (put("{"), "is not JSON: .* \\(line 1\\)"),
        "no utf-8": (lambda folder: (folder / INDEX).write_bytes(b"\xff"), "is not UTF-8"),
        "too deep": (put("[" * 100_000), "is not JSON"),
        "a list": (put("[]"), "it holds a list; expected an object"),
        "no map": (put('{"metadata": {}}'), "it has no weight_map"),
        "a map of another kind": (of([]), "weight_map is a list"),
        "an empty map": (of({}), "weight_map is empty"),
        "a number for a file": (of({"a": 3}), "weight_map: 'a' is a number; expected a file name"),
        "null for a file": (of({"a": None}), "weight_map: 'a' is null"),
        "metadata of another kind": (change(metadata=[]), "metadata is a list"),
        "a key twice": (put('{"weight_map": {"a": "x", "a": "y"}}'), "has the key 'a' twice"),
        "above": (of({"a": "../x"}), "'a' is in '../x', which is no file in this folder"),
        "above, hidden": (of({"a": "sub/../../x"}), "which is no file in this folder"),
        "absolute": (of({"a": "/etc/passwd"}), "which is no file in this folder"),
        "absolute elsewhere": (of({"a": "C:\\x"}), "which is no file in this folder"),
        "no name": (of({"a": ""}), "which is no file in this folder"),
        "a NUL": (of({"a": "x\0"}), "which is no file in this folder"),
        "missing": (lambda f: (f / SHARDS[1]).unlink(), "1 of 3 shards of .* are missing: model-00002-of-00003"),
        "truncated": (lambda f: (f / SHARDS[1]).write_bytes((f / SHARDS[1]).read_bytes()[:-1]), "00002.*truncated"),
        "another shard": (change(weight_map={"d": SHARDS[0]}), "'d' is in model-00001.*; it is in model-00003"),
        "no shard": (change(weight_map={"ghost": SHARDS[0]}), "'ghost' is in model-00001.*; it is in none"),
        "two shards": (extra, "tensor 'a.weight' is in two shards, model-00001.* and model-00003"),
        "the index itself": (of({"a": INDEX}), "is not a checkpoint"),
        "of another format": (lambda f: torch.save({"d": torch.ones(7)}, f / SHARDS[2]), "is a torch file"),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_folders(tmp_path: Path, spoil: Any, says: Any) -> None:
    (make, message) = says
    make(sharded(tmp_path / "m"))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "m")


def test_what_is_no_checkpoint_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory; give the checkpoint file in it"):
        open_checkpoint(tmp_path)
    folder = sharded(tmp_path / "m")
    with pytest.raises(
        CheckpointError, match=r"is one shard of model\.safetensors\.index\.json; give the folder: .*m$"
    ):
        open_checkpoint(folder / SHARDS[0])
    with pytest.raises(CheckpointError, match="is a folder and has no keys; leave out 'model'"):
        open_checkpoint(folder, key="model")
    (folder / INDEX).unlink()
    with open_checkpoint(folder / SHARDS[0]) as checkpoint:  # a file like any other
        assert len(checkpoint.tensors) == 2
    with pytest.raises(UsageError, match="--shard-size cuts the weights of a Hugging Face folder"):
        open_checkpoint(folder / SHARDS[0], shard_size=5)


def test_relative_names_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sharded(tmp_path / "m")
    monkeypatch.chdir(folder)
    assert checkpoint_path(Path()).name == "m"
    assert checkpoint_path(Path(INDEX)).name == "m"


def test_writers_refuse_what_was_not_announced(tmp_path: Path) -> None:
    with open_checkpoint(sharded(tmp_path / "m")) as checkpoint:
        infos = list(checkpoint.tensors.values())
        with pytest.raises(ValueError, match="same names in the same order"):
            checkpoint.writer(tmp_path, infos[1:])
        out = tmp_path / "out"
        out.mkdir()
        writer = checkpoint.writer(out, infos)
        writer.write("d", checkpoint.read("d"))
        for again in (lambda: writer.write("d", checkpoint.read("d")), lambda: writer.region("d")):
            with pytest.raises(ValueError, match="written twice"):
                again()
        with pytest.raises(ValueError, match=r"never written: a\.weight, b\.weight"):
            writer.finish()
        assert not (out / INDEX).exists()  # nothing looks complete


def test_regions_of_a_writer(tmp_path: Path) -> None:
    import os

    folder, out = sharded(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    with open_checkpoint(folder) as checkpoint:
        writer = checkpoint.writer(out, list(checkpoint.tensors.values()))
        for name in reversed(list(checkpoint.tensors)):
            region = writer.region(name)
            assert region is not None
            os.pwrite(region.fd, checkpoint.read_bytes(name), region.start)
        writer.finish()
    assert all(contents(out)[file] == contents(folder)[file] for file in SHARDS)


def test_many_shards_open_without_torch_and_few_descriptors(tmp_path: Path) -> None:
    names = [f"model-{n + 1:05d}-of-00300.safetensors" for n in range(300)]
    for n, file in enumerate(names):
        save_file({f"t{n}": torch.full((2,), float(n))}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {f"t{n}": file for n, file in enumerate(names)}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    code = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "from netgrow_cli.checkpoint import open_checkpoint\n"
        f"with open_checkpoint(Path({str(tmp_path)!r})) as checkpoint:\n"
        "    assert len(checkpoint.tensors) == 300\n"
        "    assert len(os.listdir('/proc/self/fd')) < 20 if os.path.isdir('/proc/self/fd') else True\n"
        "    assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "    for name in checkpoint.tensors:\n"
        "        checkpoint.region(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sizes_in_words() -> None:
    given = {"5GB": 5 * 10**9, "1.5 MB": 1_500_000, "2GiB": 2 << 30, "300": 300, "7kb": 7000, "1KiB": 1024, "3B": 3}
    assert {text: parse_size(text) for text in given} == given
    for text in ("", "GB", "5XB", "-1", "0", "0.1B", "1e9", "5 G B"):
        with pytest.raises(UsageError, match="--shard-size"):
            parse_size(text)


def test_ties_share_a_shard_and_count_once() -> None:
    infos = [TensorInfo("a", (10,), "F32"), TensorInfo("b", (10,), "F32"), TensorInfo("c", (10,), "F32", "a")]
    shards = split(infos, 40, "model.safetensors")
    assert {file: [info.name for info in part] for file, part in shards.items()} == {
        "model-00001-of-00002.safetensors": ["a", "c"],
        "model-00002-of-00002.safetensors": ["b"],
    }
