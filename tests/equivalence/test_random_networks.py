"""Random networks, random changes, judged by real modules that share no code with netgrow.

The networks: chains, residual sums, gates, concatenations, cuts, convolutions (grouped, depthwise, transposed),
norms, pooling, flattening either way round, shuffled channels, layers used twice, several inputs and outputs, mixed
dtypes. The changes: every command, on .pt and .safetensors, several in a row. See networks.py and cases.py.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli.errors import NetgrowError, SpecError
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.proof.probes import random_probes
from netgrow_cli.topology.layout import Fixed
from netgrow_cli.topology.network import Network
from tests.equivalence.cases import Count, run_case
from tests.equivalence.edits import inputs, randomise, save, spec_of
from tests.equivalence.networks import build

BLOCKS, IN_BLOCK = 9, 10
_COUNT = Count()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_changes_of_random_networks(tmp_path: Path, block: int) -> None:
    for seed in range(block * IN_BLOCK, (block + 1) * IN_BLOCK):
        try:
            run_case(build(seed), seed, tmp_path / str(seed), _COUNT)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_most_changes_were_carried_out() -> None:
    """What was refused above is the exception."""
    done, refused = _COUNT.done.total(), _COUNT.refused.total()
    if done + refused == 0:
        pytest.skip("the changes above were not run")
    assert done >= 0.8 * (done + refused), (_COUNT.done, _COUNT.refused)
    assert refused > 0


# -- specs that are wrong ----------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        return self.c(y + self.b(y))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


RIGHT = {
    "residual": spec_of(
        "x: [batch, 4]",
        "c",
        a="op: linear, from: x",
        r="op: relu, from: a",
        b="op: linear, from: r",
        s="op: add, from: [r, b]",
        c="op: linear, from: s",
    ),
    "joined": spec_of(
        "x: [batch, 4]",
        "c",
        a="op: linear, from: x",
        b="op: linear, from: x",
        c='op: linear, from: {"0:6": a, "6:12": b}',
    ),
}
WRONG = {
    "a missing residual": ("residual", RIGHT["residual"].replace("[r, b]", "[b, b]")),
    "the wrong order of ranges": ("joined", RIGHT["joined"].replace('"0:6": a, "6:12": b', '"0:6": b, "6:12": a')),
}


def module_of(kind: str) -> nn.Module:
    return randomise(Residual() if kind == "residual" else Joined()).double()


def seen_by_the_model(folder: Path, module: nn.Module, text: str) -> bool:
    """Whether the real module, fitted to a network that was split by this spec, fails or computes something else."""
    path = save(folder, text, module.state_dict())
    out = netgrow_cli.split(path, layer="a", units=[1, 3], output=folder / "out.pt", probes=32).output
    fitted = copy.deepcopy(module)
    with torch.no_grad():
        try:
            return not torch.allclose(netgrow_cli.fit(fitted, out)(inputs(9, 4)), module(inputs(9, 4)), rtol=1e-9)
        except (RuntimeError, NetgrowError):
            return True


@pytest.mark.parametrize("what", WRONG)
def test_the_real_model_sees_a_wrong_spec(tmp_path: Path, what: str) -> None:
    kind, text = WRONG[what]
    assert not seen_by_the_model(tmp_path / "right", module_of(kind), RIGHT[kind])
    assert seen_by_the_model(tmp_path / "wrong", module_of(kind), text)


@pytest.mark.parametrize(
    ("kind", "text"),
    (
        ("joined", RIGHT["joined"].replace('"0:6": a, "6:12": b', '"0:5": a, "5:12": b')),
        ("joined", RIGHT["joined"].replace('{"0:6": a, "6:12": b}', "a")),
        (
            "joined",
            "\n".join(line for line in RIGHT["residual"].splitlines() if " b:" not in line).replace("[r, b]", "[r, r]"),
        ),
    ),
    ids=("other sizes", "one operand", "a forgotten layer"),
)
def test_what_shapes_and_names_tell_is_an_error(tmp_path: Path, kind: str, text: str) -> None:
    path = save(tmp_path, text, module_of(kind).state_dict())
    with pytest.raises(SpecError):
        netgrow_cli.split(path, layer="a", units=[1], output=tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("axis", (("b.weight", 0), ("b.weight", 1), ("b.bias", 0), ("c.weight", 1), ("a.weight", 0)))
def test_the_certificate_finds_an_axis_that_inference_missed(tmp_path: Path, axis: tuple[str, int]) -> None:
    path = save(tmp_path, RIGHT["residual"], module_of("residual").state_dict())
    with opened(path, Options()) as job:
        network, probes = job.network, random_probes(job.network.graph, 32, 0)
        assert certify(network, probes, seed=0, dtype="float64", tolerance=1e-9).equivalence.equal
        name, place = axis
        topology = network.solved()
        axes = list(topology.tensors[name])
        axes[place] = Fixed(axes[place].size, "forgotten")
        forgetful = dataclasses.replace(topology, tensors={**topology.tensors, name: tuple(axes)})

        class Forgetful(Network):
            def solved(self, sizes: object = None) -> object:  # type: ignore[override]
                return forgetful if sizes is None else network.solved(sizes)  # type: ignore[arg-type]

        wrong = Forgetful(network.graph, network.infos, network.read)
        found = certify(wrong, probes, seed=0, dtype="float64", tolerance=1e-9)
    assert not found.equivalence.equal
    assert found.culprits
