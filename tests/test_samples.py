"""The main job on checkpoints that were really trained, witnessed by the PyTorch modules that trained them.

Every width that may change is expanded, split, pruned of dead units and recycled; `netgrow_cli.fit` loads the
result into the module, whose outputs are compared with those of before. Then training goes on.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import netgrow_cli
from netgrow_cli.jobs.job import Options, opened

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_checkpoints"


def module_of(name: str) -> ModuleType:
    """A file of sample_checkpoints, by its path."""
    spec = importlib.util.spec_from_file_location(f"sample_{name}", SAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = module_of("models")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A checkpoint, its module and its spec; widths: those that may change."""

    file: str
    model: type[torch.nn.Module]
    widths: tuple[str, ...]
    # By width, which units are zero on the data wherever they are read.
    dead: dict[str, int]

    @property
    def path(self) -> Path:
        return SAMPLES / self.file

    @property
    def spec(self) -> Path:
        return ROOT / "specs" / f"{self.path.stem}.yaml"


MLP = Sample("digits_mlp.pt", models.DigitsMLP, ("fc1", "fc2"), {"fc1": 9, "fc2": 7})
CONV = Sample(
    "digits_conv.safetensors",
    models.DigitsConv,
    ("stem.conv", "block.conv1", "branch.conv", "down", "fc"),
    {"fc": 15},
)
AGENT = Sample(
    "actor_critic.pt",
    models.ActorCritic,
    ("enc_a[0:32]", "enc_a[32:64]", "enc_b"),
    {"enc_a[0:32]": 6, "enc_a[32:64]": 3, "enc_b": 5},
)
ALL = (MLP, CONV, AGENT)
EACH = [pytest.param(sample, width, id=f"{sample.path.stem}-{width}") for sample in ALL for width in sample.widths]
WHOLE = [pytest.param(sample, id=sample.path.stem) for sample in ALL]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    """Real inputs by sample: all digits, and the observations that the agent met."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = torch.from_numpy((datasets.load_digits().data / 16.0).astype(np.float32))
    return {
        MLP.file: pixels,
        CONV.file: pixels.reshape(-1, 1, 8, 8),
        AGENT.file: torch.from_numpy(np.load(SAMPLES / "actor_critic.probes.npy")),
    }


@pytest.fixture(scope="module")
def probes(data: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same as files for --probe-data."""
    folder = tmp_path_factory.mktemp("probes")
    for name, rows in data.items():
        np.save(folder / f"{name}.npy", rows.numpy())
    return {name: folder / f"{name}.npy" for name in data}


def loaded(sample: Sample, path: Path, **options: Any) -> torch.nn.Module:
    return netgrow_cli.fit(sample.model(), path, **options).eval()


def outputs(model: torch.nn.Module, rows: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model(rows)
    return list(found) if isinstance(found, tuple) else [found]


def assert_same(sample: Sample, path: Path, rows: torch.Tensor) -> None:
    """The module with the new checkpoint answers as with the old one, in both precisions."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        old = outputs(loaded(sample, sample.path, spec=sample.spec).to(dtype), rows.to(dtype))
        new = outputs(loaded(sample, path).to(dtype), rows.to(dtype))
        for one, other in zip(old, new, strict=True):
            assert one.shape == other.shape and one.abs().max() > 0
            assert (one - other).abs().max() <= tolerance * one.abs().max()


@pytest.mark.parametrize("sample", WHOLE)
def test_the_widths_are_all_that_may_change(sample: Sample) -> None:
    with opened(sample.path, Options(spec=sample.spec)) as job:
        free = [info.name for info in job.topology.widths.values() if info.frozen is None]
    assert sorted(free) == sorted(sample.widths)


@pytest.mark.parametrize("init", ["match", "kaiming", "antisymmetric"])
@pytest.mark.parametrize(("sample", "width"), EACH)
def test_expand(sample: Sample, width: str, init: Any, tmp_path: Path, data: dict[str, torch.Tensor]) -> None:
    new = tmp_path / f"new{sample.path.suffix}"
    report = netgrow_cli.expand(sample.path, width=width, add=6, init=init, spec=sample.spec, output=new, probes=32)
    assert [change.after - change.before for change in report.plan.changes] == [6]
    assert_same(sample, new, data[sample.file])


@pytest.mark.parametrize(("sample", "width"), EACH)
def test_split(sample: Sample, width: str, tmp_path: Path, data: dict[str, torch.Tensor]) -> None:
    for name, chosen in (("some", {"units": [0, 3, 5], "ways": 3}), ("all", {"every": True})):
        new = tmp_path / f"{name}{sample.path.suffix}"
        report = netgrow_cli.split(sample.path, width=width, spec=sample.spec, output=new, probes=32, **chosen)
        before, after = report.plan.changes[0].before, report.plan.changes[0].after
        assert after == (before + 6 if name == "some" else 2 * before)
        assert_same(sample, new, data[sample.file])


@pytest.mark.parametrize(("sample", "width"), EACH)
def test_prune_dead(
    sample: Sample, width: str, tmp_path: Path, data: dict[str, torch.Tensor], probes: dict[str, Path]
) -> None:
    new = tmp_path / f"new{sample.path.suffix}"
    report = netgrow_cli.prune(
        sample.path, width=width, dead=True, spec=sample.spec, output=new, probe_data=probes[sample.file]
    )
    gone = sum(change.before - change.after for change in report.plan.changes)
    assert gone == sample.dead.get(width, 0)
    assert_same(sample, new, data[sample.file])


@pytest.mark.parametrize(("sample", "width"), EACH)
def test_recycle(
    sample: Sample, width: str, tmp_path: Path, data: dict[str, torch.Tensor], probes: dict[str, Path]
) -> None:
    new = tmp_path / f"new{sample.path.suffix}"
    report = netgrow_cli.recycle(sample.path, width=width, spec=sample.spec, output=new, probe_data=probes[sample.file])
    assert sum(len(change.dropped) for change in report.plan.changes) == sample.dead.get(width, 0)
    assert_same(sample, new, data[sample.file])


@pytest.mark.parametrize("sample", WHOLE)
def test_all_widths_one_change_after_another(
    sample: Sample, tmp_path: Path, data: dict[str, torch.Tensor], probes: dict[str, Path]
) -> None:
    """Each output is the next input, with the spec that goes with it."""
    names, seen = [tmp_path / f"{n}{sample.path.suffix}" for n in range(4)], probes[sample.file]
    netgrow_cli.prune(sample.path, width=sample.widths, dead=True, spec=sample.spec, output=names[0], probe_data=seen)
    netgrow_cli.expand(names[0], width=widths_of(names[0]), add=3, output=names[1])
    netgrow_cli.split(names[1], width=widths_of(names[1]), top=5, output=names[2])
    netgrow_cli.recycle(names[2], width=widths_of(names[2]), output=names[3], probe_data=seen)
    for name in names:
        assert_same(sample, name, data[sample.file])


def widths_of(path: Path) -> list[str]:
    with opened(path, Options()) as job:
        return [info.name for info in job.topology.widths.values() if info.frozen is None]


def test_a_module_built_with_the_new_widths(tmp_path: Path, data: dict[str, torch.Tensor]) -> None:
    """Without `fit`: the constructor's arguments say what the checkpoint holds."""
    mlp, conv, agent = tmp_path / "mlp.pt", tmp_path / "conv.safetensors", tmp_path / "agent.pt"
    netgrow_cli.expand(MLP.path, width="fc1", add=5, spec=MLP.spec, output=mlp)
    netgrow_cli.expand(CONV.path, width=["stem.conv", "down"], add=2, spec=CONV.spec, output=conv)
    netgrow_cli.split(AGENT.path, width="enc_a[32:64]", units=[1, 7], spec=AGENT.spec, output=agent)
    for sample, model, state in (
        (MLP, models.DigitsMLP(fc1=69), torch.load(mlp, weights_only=True)["model_state_dict"]),
        (CONV, models.DigitsConv(stem=18, down=34), load_file(conv)),
        (AGENT, models.ActorCritic(std_units=34), torch.load(agent, weights_only=True)),
    ):
        model.load_state_dict(state, strict=True)
        old = loaded(sample, sample.path, spec=sample.spec)
        for one, other in zip(outputs(old, data[sample.file]), outputs(model.eval(), data[sample.file]), strict=True):
            assert (one - other).abs().max() <= 1e-5 * one.abs().max()


# -- the forum case ------------------------------------------------------------------------------------


def dead_in_the_agent(rows: torch.Tensor) -> list[int]:
    """Units that are zero in enc_a and in trunk, for every row: told by the module, not by netgrow."""
    with torch.no_grad():
        enc_a, _, trunk = loaded(AGENT, AGENT.path, spec=AGENT.spec).hidden(rows)
    return ((enc_a == 0) & (trunk == 0)).all(0).nonzero().flatten().tolist()


def test_dead_units_become_halves_of_live_ones(tmp_path: Path, data: dict[str, torch.Tensor]) -> None:
    """Through concatenation, residual and split: what was dead learns again, and the outputs stay."""
    rows, new_path = data[AGENT.file], tmp_path / "new.pt"
    halves = ["enc_a[0:32]", "enc_a[32:64]"]
    report = netgrow_cli.recycle(
        AGENT.path, width=halves, spec=AGENT.spec, output=new_path, probe_data=SAMPLES / "actor_critic.probes.npy"
    )
    assert report.equivalence is not None and report.equivalence.equal
    dead = dead_in_the_agent(rows)
    assert dead == [0, 2, 3, 18, 21, 28, 32, 36, 53]
    live_of = {
        32 * half + gone: 32 * half + change.sources[gone]
        for half, change in enumerate(report.plan.changes)
        for gone in change.dropped
    }
    assert sorted(live_of) == dead
    assert not set(live_of.values()) & set(dead) and len(set(live_of.values())) == len(dead)

    old, new = (torch.load(path, weights_only=True) for path in (AGENT.path, new_path))
    assert {name: tensor.shape for name, tensor in old.items()} == {name: tensor.shape for name, tensor in new.items()}
    # Readers: by tensor, at which column a unit is read. mean and log_std read a part each.
    readers = {
        "trunk.weight": {unit: unit for unit in range(64)},
        "value.weight": {unit: unit for unit in range(64)},
        "mean.weight": {unit: unit for unit in range(32)},
        "log_std.weight": {unit: unit - 32 for unit in range(32, 64)},
    }
    gathered = {name: tensor.clone() for name, tensor in old.items()}
    for gone, live in live_of.items():
        # What makes the dead unit is now what makes the live one; that one is as it was.
        for name in ("enc_a.weight", "enc_a.bias", "trunk.bias"):
            assert torch.equal(new[name][gone], old[name][live]) and torch.equal(new[name][live], old[name][live])
        gathered["trunk.weight"][gone] = old["trunk.weight"][live]
    touched = {name: set() for name in readers}
    for gone, live in live_of.items():
        for name, columns in readers.items():
            if live not in columns:
                continue
            one, other = columns[live], columns[gone]
            # Bit for bit, in the checkpoint's own float32; and not twins, which would stay twins.
            assert torch.equal(new[name][:, one] + new[name][:, other], gathered[name][:, one])
            assert not torch.equal(new[name][:, one], new[name][:, other])
            touched[name] |= {one, other}
    assert {name: len(found) for name, found in touched.items()} == {
        "trunk.weight": 18,
        "value.weight": 18,
        "mean.weight": 12,
        "log_std.weight": 6,
    }
    for name, tensor in new.items():
        if name in readers:
            kept = [column for column in range(tensor.shape[1]) if column not in touched[name]]
            assert torch.equal(tensor[:, kept], gathered[name][:, kept])
        elif name not in ("enc_a.weight", "enc_a.bias", "trunk.bias"):
            assert torch.equal(tensor, old[name])
    assert_same(AGENT, new_path, rows)
    with torch.no_grad():
        enc_a, _, trunk = loaded(AGENT, new_path).hidden(rows)
    assert bool((((enc_a != 0) | (trunk != 0)).any(0))[dead].all())


def test_what_was_dead_learns_again(tmp_path: Path, data: dict[str, torch.Tensor]) -> None:
    """Before, no gradient reaches a dead unit; after, one does."""
    new_path = tmp_path / "new.pt"
    netgrow_cli.recycle(
        AGENT.path,
        layer="enc_a",
        spec=AGENT.spec,
        output=new_path,
        probe_data=SAMPLES / "actor_critic.probes.npy",
    )
    dead = dead_in_the_agent(data[AGENT.file])
    for path, learns in ((AGENT.path, False), (new_path, True)):
        model = loaded(AGENT, path, spec=AGENT.spec)
        sum(out.square().sum() for out in model(data[AGENT.file])).backward()
        rows = torch.cat([model.enc_a.weight.grad[dead], model.trunk.weight.grad[dead]], dim=1)
        assert bool((rows != 0).any(1).all()) == learns


# -- training goes on ------------------------------------------------------------------------------------

STEPS, EARLY = 40, 12
NEAR = 0.2
"""How far, in units of the first loss, the loss may be from that of the unedited run in the first steps."""


def losses(path: Path, spoil: Any = None) -> list[float]:
    """The loss on all training images, before and after each of some dozen steps that go on from the checkpoint."""
    digits = module_of("digits")
    pixels, labels, _, _ = digits.split()
    model = netgrow_cli.fit(models.DigitsMLP(), path).train()
    state = torch.load(path, weights_only=True)["optimizer_state_dict"]
    optimizer = torch.optim.AdamW(model.named_parameters())
    if spoil is not None:
        spoil(state)
    optimizer.load_state_dict(state)
    order = torch.Generator().manual_seed(0)
    batches = [rows for _ in range(2) for rows in torch.randperm(len(pixels), generator=order).split(64)][:STEPS]
    found = []
    for rows in [None, *batches]:
        if rows is not None:
            optimizer.zero_grad()
            F.cross_entropy(model(pixels[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            found.append(F.cross_entropy(model(pixels), labels).item())
    return found


@pytest.fixture(scope="module")
def unedited() -> list[float]:
    pytest.importorskip("sklearn")
    return losses(MLP.path)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory, probes: dict[str, Path]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("edited")
    common: dict[str, Any] = {"layer": ["fc1", "fc2"], "spec": MLP.spec}
    seen = {"probe_data": probes[MLP.file]}
    made = {name: folder / f"{name}.pt" for name in ("expand", "antisymmetric", "split", "prune", "recycle")}
    netgrow_cli.expand(MLP.path, add=16, output=made["expand"], **common)
    netgrow_cli.expand(MLP.path, add=16, init="antisymmetric", output=made["antisymmetric"], **common)
    netgrow_cli.split(MLP.path, top=16, output=made["split"], **common)
    netgrow_cli.prune(MLP.path, dead=True, output=made["prune"], **common, **seen)
    netgrow_cli.recycle(MLP.path, output=made["recycle"], **common, **seen)
    return made


def distance(found: list[float], base: list[float]) -> float:
    """The largest distance of two runs in their first steps, in units of the first loss."""
    return max(abs(a - b) for a, b in zip(found[:EARLY], base[:EARLY], strict=True)) / base[0]


@pytest.mark.parametrize("change", ["expand", "antisymmetric", "split", "prune", "recycle"])
def test_training_goes_on(change: str, edited: dict[str, Path], unedited: list[float]) -> None:
    found = losses(edited[change])
    assert found[0] == pytest.approx(unedited[0], rel=1e-5)
    assert distance(found, unedited) <= NEAR
    assert max(found) <= 1.5 * max(unedited)


def no_moments(state: dict[str, Any]) -> None:
    for entry in state["state"].values():
        entry["exp_avg"].zero_()
        entry["exp_avg_sq"].zero_()


def no_first_moments(state: dict[str, Any]) -> None:
    for entry in state["state"].values():
        entry["exp_avg"].zero_()


def nothing_at_all(state: dict[str, Any]) -> None:
    state["state"].clear()


def other_rows(state: dict[str, Any]) -> None:
    for entry in state["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name] = entry[name].roll(1, 0)


@pytest.mark.parametrize("spoil", [no_moments, no_first_moments, nothing_at_all, other_rows])
@pytest.mark.parametrize("change", ["expand", "split", "recycle"])
def test_the_bound_tells_a_wrong_optimizer_state(
    change: str, spoil: Any, edited: dict[str, Path], unedited: list[float]
) -> None:
    assert distance(losses(edited[change], spoil), unedited) > NEAR


def test_moments_of_old_units_stay(edited: dict[str, Path]) -> None:
    before = torch.load(MLP.path, weights_only=True)
    after = torch.load(edited["expand"], weights_only=True)
    assert set(before) == set(after) and after["epoch"] == before["epoch"]
    old, new = before["optimizer_state_dict"], after["optimizer_state_dict"]
    assert json.dumps(old["param_groups"]) == json.dumps(new["param_groups"])
    model = loaded(MLP, edited["expand"])
    for (name, parameter), identity in zip(model.named_parameters(), old["state"], strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            was, now = old["state"][identity][key], new["state"][identity][key]
            assert now.shape == parameter.shape
            kept = tuple(slice(0, size) for size in was.shape)
            assert torch.equal(now[kept], was), name
            rest = now.clone()
            rest[kept] = 0
            if key == "exp_avg":
                assert not rest.any(), name
            else:  # zero would make the first updates many times the learning rate
                assert rest.max() <= was.max() and bool((now >= 0).all()), name
        assert new["state"][identity]["step"] == old["state"][identity]["step"]
