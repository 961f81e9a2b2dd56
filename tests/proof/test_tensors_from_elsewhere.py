"""Large matrices are read in parts from the checkpoint; a network whose tensors come from elsewhere reads those."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import netgrow_cli
from netgrow_cli.errors import NotEquivalent
from netgrow_cli.jobs import training_state
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof.permutation import certify, permuted
from netgrow_cli.topology import network as networks
from tests.equivalence.edits import randomise, save
from tests.equivalence.test_surgery_exact import MLP, Mlp


@pytest.fixture(autouse=True)
def every_matrix_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "is_large", lambda info: len(info.shape) == 2)


def test_the_certificate_permutes_what_is_read_in_parts(tmp_path: Path) -> None:
    path = save(tmp_path, MLP, randomise(Mlp()).double().state_dict())
    with opened(path, Options()) as job:
        free = [info for info in job.topology.widths.values() if info.frozen is None]
        assert job.network.sources is not None and permuted(job.network, free, 0).sources is None
        found = certify(job.network, job.probes(8, 0), seed=0, dtype="float64", tolerance=1e-10)
        assert found.equivalence.equal and found.widths == len(free) > 0


def test_an_average_is_proven_by_its_own_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose written numbers are wrong is found out by running it, if folding back were blind."""
    model, average = randomise(Mlp(), 0).double(), randomise(Mlp(), 1).double()
    (tmp_path / "netgrow.yaml").write_text(MLP, encoding="utf-8")
    path = tmp_path / "net.pt"
    torch.save({"model": model.state_dict(), "ema": average.state_dict()}, path)
    report = netgrow_cli.expand(path, layer="a", add=2, probes=16, force=True)
    assert [one.sibling.label for one in report.state.along] == ["ema"]
    read = training_state._network

    def spoiled(network: networks.Network, values: dict[str, torch.Tensor], checkpoint: object) -> networks.Network:
        if len(values["a.weight"]) > len(average.state_dict()["a.weight"]):  # (what was written)
            values = {**values, "b.weight": values["b.weight"] + 1.0}
        return read(network, values, checkpoint)  # type: ignore[arg-type]

    found = training_state.fold_back
    monkeypatch.setattr(training_state, "fold_back", lambda *a, **k: type(r := found(*a, **k))(r.exact, (), r.left))
    monkeypatch.setattr(training_state, "_network", spoiled)
    with pytest.raises(NotEquivalent, match="'ema', which goes along"):
        netgrow_cli.expand(path, layer="a", add=2, probes=16, force=True)
