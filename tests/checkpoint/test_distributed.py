"""Folders of torch.distributed.checkpoint: as torch writes and reads them, and without running what is in them."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict

import netgrow_cli
from netgrow_cli.checkpoint import TensorInfo, open_checkpoint
from netgrow_cli.errors import CheckpointError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore")


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))


def trained() -> tuple[Any, Any]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def saved(folder: Path, state: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)
    return folder


def as_torch_reads(folder: Path, scratch: Path) -> Any:
    dcp_to_torch_save(folder, scratch)
    return torch.load(scratch, weights_only=False)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    model, optimizer = trained()
    weights, state = get_state_dict(model, optimizer)
    more = {"epoch": 3, "note": "é", "scores": [1.5, None], "table": {"half": torch.ones(2, 3).bfloat16()}}
    return saved(tmp_path / "run", {"model": weights, "optim": state, **more})


def test_reading(training: Path) -> None:
    model, _ = trained()
    with open_checkpoint(training) as checkpoint:
        assert (checkpoint.format, checkpoint.key) == ("distributed", "model")
        state = model.state_dict()
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == {n: t.shape for n, t in state.items()}
        assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in state.items())
        assert checkpoint.read_bytes("0.bias") == state["0.bias"].numpy().tobytes()
        tree = checkpoint.tree()
        assert (tree["epoch"], tree["note"], tree["scores"]) == (3, "é", [1.5, None])
        assert tree["optim"]["param_groups"][0]["lr"] == 0.01


def test_what_is_copied_is_the_same_to_torch(tmp_path: Path, training: Path) -> None:
    for out in (tmp_path / "one", tmp_path / "two"):
        out.mkdir()
        with open_checkpoint(training) as checkpoint:
            infos = list(checkpoint.tensors.values())
            writer = checkpoint.writer(out, infos)
            for number, info in enumerate(infos):
                if number % 2 and (region := writer.region(info.name)) is not None:
                    os.pwrite(region.fd, checkpoint.read_bytes(info.name), region.start)
                else:
                    writer.write(info.name, checkpoint.read(info.name))
            writer.finish()
        assert sorted(path.name for path in out.iterdir()) == [".metadata", "__0_0.distcp"]
        assert same(as_torch_reads(training, tmp_path / "a.pt"), as_torch_reads(out, tmp_path / "b.pt"))
    for name in (".metadata", "__0_0.distcp"):  # the same input gives the same bytes
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_training_goes_on_in_an_edited_folder(tmp_path: Path, training: Path) -> None:
    (training / "log.txt").write_text("loss")
    report = netgrow_cli.expand(training, layer="0", add=4, probes=16)
    assert report.output == tmp_path / "run.expanded" and report.equivalence is not None and report.equivalence.equal
    assert (report.output / "log.txt").read_text() == "loss"
    state = as_torch_reads(report.output, tmp_path / "a.pt")
    assert state["epoch"] == 3 and same(state["table"]["half"], torch.ones(2, 3).bfloat16())
    model = torch.nn.Sequential(torch.nn.Linear(3, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    weights, moments = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optim": moments}, checkpoint_id=report.output)
    from torch.distributed.checkpoint.state_dict import set_state_dict

    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    old, _ = trained()
    inputs = torch.randn(16, 3)
    assert torch.allclose(model(inputs), old(inputs), atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == 0.01
    before = model[0].weight.clone()
    model(inputs).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
    # Its own spec and record are found in it.
    equal, folded = netgrow_cli.verify(training, report.output, probes=16)
    assert equal.equal and folded is not None and folded.whole
    again = netgrow_cli.split(report.output, layer="0", units=[1], probes=16, drop_optimizer=True)
    assert "optim" not in as_torch_reads(again.output, tmp_path / "b.pt")


def test_a_flat_state_dict(tmp_path: Path) -> None:
    folder = saved(tmp_path / "flat", network().state_dict())
    assert netgrow_cli.expand(folder, layer="0", add=2, probes=8).output.name == "flat.expanded"
    with open_checkpoint(tmp_path / "flat.expanded") as checkpoint:
        assert checkpoint.key is None and checkpoint.tensors["0.weight"].shape == (8, 3)


def test_tensors_in_several_chunks(tmp_path: Path) -> None:
    """What several processes save: each holds rows of its own."""
    folder = saved(tmp_path / "m", {"w": torch.arange(12.0).reshape(4, 3)})
    two = saved(tmp_path / "two", {"w": torch.arange(100.0, 106.0).reshape(2, 3)})
    shutil.copy(two / "__0_0.distcp", folder / "__1_0.distcp")
    # The second half of the rows is in the other file.
    metadata = dcp.FileSystemReader(folder).read_metadata()
    other = next(iter(dcp.FileSystemReader(two).read_metadata().storage_data.values()))
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    chunk = metadata.state_dict_metadata["w"].chunks[0]
    metadata.state_dict_metadata["w"].chunks = [
        ChunkStorageMetadata(chunk.offsets, torch.Size([2, 3])),
        ChunkStorageMetadata(torch.Size([2, 0]), torch.Size([2, 3])),
    ]
    shutil.copy(saved(tmp_path / "top", {"w": torch.arange(6.0).reshape(2, 3)}) / "__0_0.distcp", folder)
    top = next(iter(dcp.FileSystemReader(tmp_path / "top").read_metadata().storage_data.values()))
    other.relative_path = "__1_0.distcp"
    metadata.storage_data = {MetadataIndex("w", [0, 0]): top, MetadataIndex("w", [2, 0]): other}
    metadata.storage_meta = None
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read("w").tolist() == [[0, 1, 2], [3, 4, 5], [100, 101, 102], [103, 104, 105]]
        assert checkpoint.own_files == {".metadata", "__0_0.distcp", "__1_0.distcp"}


def test_an_interrupt_within_torch_is_one(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch wraps all that is raised, an interrupt too, which then would be an error of the checkpoint."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with open_checkpoint(training) as checkpoint:
        monkeypatch.setattr(torch, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.read("0.weight")


def test_a_full_disk_while_torch_writes(tmp_path: Path, training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device; nothing was written"):
        netgrow_cli.expand(training, layer="0", add=4, probes=16)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# -- what is refused ---------------------------------------------------------------------------------------


class Hostile:
    """Whoever unpickles it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


class Evaluated(Hostile):
    def __reduce__(self) -> Any:
        return eval, (f"__import__('pathlib').Path({str(self.place)!r}).touch()",)


@pytest.mark.parametrize("kind", [Hostile, Evaluated])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_metadata_runs_no_code(tmp_path: Path, training: Path, kind: type[Hostile], protocol: int) -> None:
    proof = tmp_path / "it ran"
    metadata = dcp.FileSystemReader(training).read_metadata()
    metadata.planner_data = kind(proof)
    (training / ".metadata").write_bytes(pickle.dumps(metadata, protocol=protocol))
    dcp.FileSystemReader(training).read_metadata()
    assert proof.exists()  # torch runs it
    proof.unlink()
    name = "eval" if kind is Evaluated else "touch|getattr"
    with pytest.raises(
        CheckpointError, match=rf"\.metadata contains code \(.*({name}).*\), refused; nothing of it was run"
    ):
        open_checkpoint(training)
    assert not proof.exists()


def test_a_hostile_object_beside_the_tensors_runs_no_code(tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    folder = saved(tmp_path / "m", {"model": network().state_dict(), "extra": Hostile(proof)})
    proof.unlink(missing_ok=True)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read("0.weight").shape == (6, 3)  # nobody asked for the object
        with pytest.raises(CheckpointError, match=r"'extra' contains code \(.+\), refused"):
            checkpoint.tree()
    with pytest.raises(CheckpointError, match=r"'extra' contains code \(.+\), refused"):
        netgrow_cli.expand(folder, layer="0", add=2, probes=8)
    assert not proof.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def changed(folder: Path, change: Any) -> None:
    metadata = dcp.FileSystemReader(folder).read_metadata()
    metadata.storage_meta = None
    (folder / ".metadata").write_bytes(pickle.dumps(change(metadata)))


def elsewhere(path: str) -> Any:
    def change(metadata: Any) -> Any:
        next(iter(metadata.storage_data.values())).relative_path = path
        return metadata

    return change


def with_planner(planner: Any) -> Any:
    def change(metadata: Any) -> Any:
        metadata.planner_data = planner
        return metadata

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda metadata: {"a": 1}, "holds a dict and not the metadata"),
        (elsewhere("../../secret"), "is in '../../secret', which is no file in this folder"),
        (elsewhere("/etc/passwd"), "is in '/etc/passwd', which is no file in this folder"),
        (elsewhere("__7_0.distcp"), "__7_0.distcp is missing"),
        (with_planner([1]), "its tables are no tables"),
        (with_planner({"model.0.weight": "x"}), "is at 'x'"),
        (with_planner({"model.0.weight": ("a",), "model.0.bias": ("a",)}), "two entries have the same place"),
        (with_planner({"model.0.weight": ("a",), "model.0.bias": ("a", "b")}), "below something that is no container"),
        (with_planner({"model.0.weight": ("a", 1 << 40)}), "is no place in a list"),
    ],
)
def test_damaged_metadata(training: Path, change: Any, says: str) -> None:
    changed(training, change)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(training)


def test_what_is_incomplete(tmp_path: Path, training: Path) -> None:
    whole = (training / ".metadata").read_bytes()
    (training / ".metadata").write_bytes(whole[:-20])
    with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
        open_checkpoint(training)
    (training / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="was not saved to the end"):
        open_checkpoint(training)
    (training / ".metadata").write_bytes(whole)
    payload = training / "__0_0.distcp"
    payload.write_bytes(payload.read_bytes()[:100])
    with (
        open_checkpoint(training) as checkpoint,
        pytest.raises(CheckpointError, match=r"'model\.0\.weight' is damaged"),
    ):
        checkpoint.read("0.weight")
    with pytest.raises(UsageError, match="--shard-size cuts the weights of a Hugging Face folder"):
        open_checkpoint(training, shard_size=10)


def test_dtypes_that_cannot_wait_on_the_disk(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", {"w": torch.ones(2, 2), "c": torch.ones(2, dtype=torch.complex128)})
    (tmp_path / "out").mkdir()
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["c"] == TensorInfo("c", (2,), "C128")
        with pytest.raises(CheckpointError, match="'c' is C128"):
            checkpoint.writer(tmp_path / "out", list(checkpoint.tensors.values()))
