"""Layers whose weight is computed from parameters (weight_norm, standardised weights), measured in real modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import netgrow_cli
from netgrow_cli import NotEquivalent, Refused
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.topology.run import run
from netgrow_cli.topology.trace.inputs import Given
from netgrow_cli.topology.trace.source import trace_model
from tests.equivalence.edits import Edit, edit, inputs, randomise, save
from tests.topology.toys import StandardConv

EXACT = 1e-12

pytestmark = pytest.mark.filterwarnings("ignore")

Normed = Callable[..., nn.Module]
WAYS: dict[str, tuple[Normed, str, str]] = {
    # By way: the function, and what it calls the direction and the magnitude.
    "parametrized": (
        parametrizations.weight_norm,
        "parametrizations.weight.original1",
        "parametrizations.weight.original0",
    ),
    "old": (nn.utils.weight_norm, "weight_v", "weight_g"),
}


class Linears(nn.Module):
    """a is made by weight_norm and read plainly, b the other way round."""

    def __init__(self, normed: Normed, between: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = normed(nn.Linear(4, 6)), nn.Linear(6, 5), normed(nn.Linear(5, 3))
        self.between, self.act = between or nn.Identity(), torch.relu if between is None else torch.tanh

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(self.act(self.between(self.a(x))))))


class Convs(nn.Module):
    """The same of convolutions, the last of groups."""

    def __init__(self, normed: Normed) -> None:
        super().__init__()
        self.a, self.b = normed(nn.Conv2d(2, 6, 3, padding=1)), nn.Conv2d(6, 4, 1)
        self.c = normed(nn.Conv2d(4, 6, 3, groups=2, bias=False))
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.c(torch.tanh(self.b(torch.relu(self.a(x)))))).mean((2, 3)))


class Up(nn.Module):
    """Transposed, where what is read has a norm of its own."""

    def __init__(self, normed: Normed) -> None:
        super().__init__()
        self.a, self.up, self.out = nn.Conv1d(2, 6, 1), normed(nn.ConvTranspose1d(6, 4, 1)), nn.Conv1d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.up(torch.relu(self.a(x)))))


class Standard(nn.Module):
    def __init__(self, gained: bool = True) -> None:
        super().__init__()
        self.a, self.b = StandardConv(2, 6, 3, gained=gained), nn.Conv2d(6, 4, 1)
        self.c, self.out = StandardConv(4, 5, 3, gained=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))).mean((2, 3)))


READ = {Linears: "b", Convs: "b.channels"}
"""The width that c reads."""

SHAPES = {Linears: (7, 4), Convs: (3, 2, 6, 5), Up: (3, 2, 5), Standard: (3, 2, 7, 7)}


def traced(module: nn.Module) -> str:
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    found = trace_model(module, [Given(None, dtype, SHAPES[type(module)])])
    assert not found.unknown
    return found.text


def changed(folder: Path, module: nn.Module, command: str, **settings: Any) -> Edit:
    """The change, with the same outputs in the real module; the checkpoint holds float64."""
    done = edit(folder, traced(module), module.double(), command, **settings)
    assert done.distance(inputs(*SHAPES[type(module)])) < EXACT
    return done


def made(kind: Any, way: str = "parametrized", *more: Any) -> Any:
    """(The old way keeps the weight of its last run, which is not to be copied where that had gradients.)"""
    module = randomise(kind(WAYS[way][0], *more)).double()
    with torch.no_grad():
        module(inputs(*SHAPES[kind]))
    return module


# -- what is exact ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Linears, Convs])
@pytest.mark.parametrize("init", ["match", "kaiming"])
def test_expand_of_what_it_makes_and_what_it_reads(kind: Any, way: str, init: Any, tmp_path: Path) -> None:
    _, direction, magnitude = WAYS[way]
    module = made(kind, way)
    done = changed(tmp_path / "a", module, "expand", layer="a", add=3, init=init)
    old, new = done.old[f"a.{direction}"], done.new[f"a.{direction}"]
    assert torch.equal(new[:6], old) and bool(new[6:].flatten(1).norm(dim=1).min() > 0)
    fresh = done.new[f"a.{magnitude}"][6:]
    assert torch.equal(fresh, torch.full_like(fresh, float(done.old[f"a.{magnitude}"].mean())))
    read = changed(tmp_path / "b", module, "expand", width=READ[kind], add=2, init=init)
    columns = read.new[f"c.{direction}"]
    assert columns.shape[1] == read.old[f"c.{direction}"].shape[1] + 2
    assert not columns[:, -2:].any() and torch.equal(read.new[f"c.{magnitude}"], read.old[f"c.{magnitude}"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Linears, Convs])
def test_split_of_what_it_makes(kind: Any, way: str, tmp_path: Path) -> None:
    done = changed(tmp_path, made(kind, way), "split", layer="a", units=[1, 4])
    for name in WAYS[way][1:]:
        assert torch.equal(done.new[f"a.{name}"][6:], done.old[f"a.{name}"][[1, 4]])


def test_new_units_learn(tmp_path: Path) -> None:
    done = changed(tmp_path, made(Linears), "expand", layer=["a", "b"], add=2, check_learnable=True)
    assert done.report.learnable is not None and done.report.learnable.good


def test_antisymmetric_pairs_that_it_makes(tmp_path: Path) -> None:
    done = changed(tmp_path, made(Linears), "expand", layer="a", add=2, init="antisymmetric")
    rows = done.new["a.parametrizations.weight.original1"]
    assert torch.equal(rows[6], rows[7]) and torch.equal(done.new["b.weight"][:, 6], -done.new["b.weight"][:, 7])
    assert bool(done.new["b.weight"][:, 6].any())


@pytest.mark.parametrize("way", WAYS)
def test_dead_units_that_it_makes_go(way: str, tmp_path: Path) -> None:
    module = made(Linears, way)
    with torch.no_grad():
        module.a.bias[2] = -100.0
    done = changed(tmp_path, module, "prune", layer="a", units=[2])
    for name in WAYS[way][1:]:
        assert torch.equal(done.new[f"a.{name}"], done.old[f"a.{name}"][[0, 1, 3, 4, 5]])


def test_zero_units_for_a_norm_are_so_by_their_magnitude(tmp_path: Path) -> None:
    """A row of zeros has no direction: it would be 0 / 0."""
    module = made(Linears, "parametrized", nn.RMSNorm(6, eps=1e-6))
    done = changed(tmp_path, module, "expand", layer="a", add=2, check_learnable=True)
    assert not done.new["a.parametrizations.weight.original0"][6:].any()
    assert bool(done.new["a.parametrizations.weight.original1"][6:].all()) and bool(done.new["b.weight"][:, 6:].all())
    assert done.report.learnable is not None and done.report.learnable.good


@pytest.mark.parametrize("command", ["expand", "split", "prune"])
def test_units_that_a_transposed_convolution_reads(command: str, tmp_path: Path) -> None:
    """Its norms are over what it makes: the magnitudes that read are zero for new units, and shared by copies."""
    module, how = made(Up), {"expand": {"add": 2}, "split": {"units": [0, 3]}, "prune": {"dead": True}}[command]
    with torch.no_grad():
        module.a.weight[2], module.a.bias[2] = 0.0, 0.7  # a unit that is constant, which the bias takes over
    done = changed(tmp_path, module, command, layer="a", **how)
    magnitude, old = (state["up.parametrizations.weight.original0"].flatten() for state in (done.new, done.old))
    direction = done.new["up.parametrizations.weight.original1"]
    if command == "expand":
        assert not magnitude[6:].any() and bool(direction[6:].all())
    elif command == "split":
        assert torch.equal(magnitude[[0, 3]] + magnitude[6:], old[[0, 3]]) and torch.equal(
            direction[6:], direction[[0, 3]]
        )
    else:
        assert len(magnitude) == 5 and not torch.equal(done.new["up.bias"], done.old["up.bias"])


@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize(("command", "how"), [("expand", {"add": 2}), ("split", {"units": [0, 5]})])
def test_units_that_standardised_weights_make(gained: bool, command: str, how: Any, tmp_path: Path) -> None:
    module = randomise(Standard(gained))
    changed(tmp_path, module, command, layer="a", **how)


def gone(done: Edit) -> list[tuple[int, int, float]]:
    return [entry for change in done.report.plan.changes for entry in change.absorbed]


def test_duplicates_that_it_makes_are_merged(tmp_path: Path) -> None:
    """A row of the same direction with another magnitude is a multiple; a multiple of a direction alone is none."""
    module = made(Linears)
    weight = module.a.parametrizations.weight
    with torch.no_grad():
        for row, (direction, magnitude) in {4: (1.0, 2.0), 5: (3.0, 1.0)}.items():
            weight.original1[row] = weight.original1[row - 3] * direction
            weight.original0[row] = weight.original0[row - 3] * magnitude
            module.a.bias[row] = module.a.bias[row - 3] * magnitude
    done = changed(tmp_path, module, "prune", layer="a", duplicates=True)
    assert gone(done) == [(4, 1, 2.0)]


def test_multiples_of_standardised_filters_are_no_multiples(tmp_path: Path) -> None:
    module = randomise(Standard(gained=False)).double()
    with torch.no_grad():
        module.a.weight[4], module.a.bias[4] = 2 * module.a.weight[1], 2 * module.a.bias[1]
    done = edit(tmp_path, traced(module), module, "prune", layer="a", duplicates=True)
    assert gone(done) == []


# -- what is not ------------------------------------------------------------------------------------------------

NORM, ALL = (
    "divides its weights by their norm over all that it reads",
    "standardises its weights over all that it reads",
)


def refusal(folder: Path, module: nn.Module, command: str, **settings: Any) -> str:
    path = save(folder, traced(module), module.double().state_dict())
    with pytest.raises(Refused) as caught:
        getattr(netgrow_cli, command)(path, probes=16, **settings)
    assert not list(folder.glob("*.pt")) or [file.name for file in folder.glob("*.pt")] == ["net.pt"]
    return str(caught.value)


@pytest.mark.parametrize("kind", [Linears, Convs])
def test_what_weight_norm_reads_as_a_whole(kind: Any, tmp_path: Path) -> None:
    module, width = made(kind), READ[kind]
    assert "copies of units change all of them; what works: expand" in refusal(
        tmp_path, module, "split", width=width, units=[0]
    )
    assert NORM in refusal(tmp_path, module, "prune", width=width, units=[0])
    assert NORM in refusal(tmp_path, module, "recycle", width=width, units=[0], fresh=True, allow_drift=9.0)
    found = refusal(tmp_path, module, "expand", width=width, add=2, init="antisymmetric")
    assert "must read new units with zeros" in found and "default --init" in found


def test_drift_is_measured_where_it_is_allowed(tmp_path: Path) -> None:
    module = made(Linears).double()
    done = edit(tmp_path, traced(module), module, "prune", layer="b", units=[0], allow_drift=9.0)
    assert done.report.equivalence is not None and done.report.equivalence.max_rel > 1e-3
    with pytest.raises(NotEquivalent):
        edit(tmp_path, traced(module), module, "prune", layer="b", units=[0], allow_drift=1e-6, force=True)


def test_zero_units_are_not_read_with_zeros(tmp_path: Path) -> None:
    class Both(Linears):
        def __init__(self) -> None:
            super().__init__(WAYS["parametrized"][0], nn.RMSNorm(6, eps=1e-6))
            self.b = WAYS["parametrized"][0](nn.Linear(6, 5))

    SHAPES[Both] = SHAPES[Linears]
    assert "such units never learn" in refusal(tmp_path, randomise(Both()), "expand", layer="a", add=2)


def test_the_mean_of_rows_makes_no_mean(tmp_path: Path) -> None:
    module = made(Linears, "parametrized", nn.LayerNorm(6))
    assert "does not keep fresh units at the mean" in refusal(tmp_path, module, "expand", layer="a", add=2)
    changed(tmp_path, module, "split", layer="a", every=True)


def test_what_a_transposed_convolution_makes(tmp_path: Path) -> None:
    for command, how in (("expand", {"add": 1}), ("split", {"units": [0]})):
        assert "a norm that takes in all units that it makes" in refusal(tmp_path, made(Up), command, layer="up", **how)


@pytest.mark.parametrize(
    ("command", "how"), [("expand", {"add": 2}), ("split", {"every": True}), ("prune", {"units": [0]})]
)
def test_what_standardised_weights_read(command: str, how: Any, tmp_path: Path) -> None:
    assert ALL in refusal(tmp_path, randomise(Standard()), command, layer="b", **how)


def test_another_dim_stays_without_a_rule() -> None:
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6), dim=1), nn.Linear(6, 3))
    found = trace_model(module, [Given(None, "float32", (2, 4))])
    assert found.unknown == {"aten._weight_norm.default": 1}


def test_a_weight_that_is_read_as_a_value_too_has_its_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = parametrizations.weight_norm(nn.Linear(4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) @ self.a.weight

    found = trace_model(Twice(), [Given(None, "float32", (2, 4))])
    assert found.unknown == {"aten._weight_norm.default": 1} and "op: weight_norm_linear" in found.text


@pytest.mark.parametrize("inside", [False, True])
def test_standardised_weights_that_are_read_as_values_too(inside: bool, tmp_path: Path) -> None:
    """inside: in a functional graph, which has the mean and the deviation beside the weight."""

    class Regularised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = torch.nn.functional.batch_norm(self.a.weight.reshape(1, 6, -1), None, None, training=True)
            weight = rows.reshape_as(self.a.weight)
            x = torch.nn.functional.conv2d(x, weight, self.a.bias)
            if inside:
                x[:, :2].mul_(2.0)
            return self.out(torch.relu(x)) + weight.amax()

    module = randomise(Regularised()).double()
    found = trace_model(module, [Given(None, "float64", (3, 2, 6, 6))])
    assert "op: standardized_conv2d" in found.text and sum("batch_norm" in call for call in found.unknown) == 1
    path, x = save(tmp_path, found.text, module.state_dict()), inputs(3, 2, 6, 6)
    with opened(path, Options()) as job, torch.no_grad():
        (made,) = run(job.topology, job.network.read, {"x": x}, dtype=torch.float64)
        torch.testing.assert_close(made, module(x), rtol=EXACT, atol=EXACT)


def test_the_positions_of_wav2vec2(tmp_path: Path) -> None:
    """A grouped convolution with a norm for each tap of its kernel."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    convs = {"conv_dim": (6,), "conv_stride": (2,), "conv_kernel": (3,), "num_feat_extract_layers": 1}
    position = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": 5}
    config = transformers.Wav2Vec2Config(**sizes, **convs, **position, mask_time_prob=0.0)
    module = randomise(transformers.Wav2Vec2ForCTC(config)).double()
    found = trace_model(module, [Given(None, "float32", (2, 40))])
    assert not found.unknown and "op: weight_norm_conv1d" in found.text and "dim: 2" in found.text
    path, x = save(tmp_path, found.text, module.state_dict()), inputs(2, 40)
    inner = "wav2vec2.encoder.layers.0.feed_forward.intermediate_dense"
    wide = netgrow_cli.expand(path, layer=inner, add=3, probes=4).output
    fitted = netgrow_cli.fit(copy.deepcopy(module), wide)
    with torch.no_grad():
        torch.testing.assert_close(fitted(x).logits, module(x).logits, rtol=EXACT, atol=EXACT)
    with pytest.raises(Refused, match="a norm that takes in all units that it makes"):
        netgrow_cli.expand(path, width="wav2vec2.feature_projection.projection.filters", add=1, force=True)


def test_rows_of_weights_that_are_computed_are_no_batch_norms(tmp_path: Path) -> None:
    """Behind a batch_norm filters count as multiplied by its factors, but not where the weight is computed of them."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = StandardConv(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.norm(self.a(x))))

    SHAPES[Behind] = SHAPES[Standard]
    module = randomise(Behind()).double()
    with torch.no_grad():  # the same rows times the factor of the norm, and the same shift
        for tensor in (module.norm.running_mean, module.norm.bias, module.a.bias):
            tensor[4] = tensor[1] = 0.0
        module.norm.running_var[4] = module.norm.running_var[1]
        module.norm.weight[4] = 2 * module.norm.weight[1]
        module.a.weight[4] = module.a.weight[1] / 2
    assert gone(edit(tmp_path, traced(module), module, "prune", layer="a", duplicates=True)) == []
