"""Units that are dead on probes and units that are proven dead: which is said of which, and both go exactly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli.errors import NotEquivalent
from netgrow_cli.jobs.deadness import Deadness, deadness
from netgrow_cli.jobs.job import Options, opened
from tests.equivalence import test_attention_exact as attention
from tests.equivalence import test_recurrent_exact as recurrent
from tests.equivalence.edits import Edit, edit, inputs, randomise, save, spec_of

EXACT = 1e-12
both = pytest.mark.parametrize("proven", (False, True), ids=("dead", "proven"))


def found(path: Path, *names: str, proven_only: bool = False, **options: Any) -> tuple[Deadness, list[int]]:
    with opened(path, Options(**options)) as job:
        widths = [identity for name in names for identity, info in job.topology.widths.items() if info.name == name]
        return deadness(job, widths, proven_only), widths


def names_of(edited: Edit) -> list[str]:
    return [one["kind"] for one in edited.report.as_json()["evidence"]]


def warned(edited: Edit, word: str) -> bool:
    return any(word in line for line in edited.report.warnings)


# -- a chain -----------------------------------------------------------------------------------------------

CHAIN = spec_of("x: [batch, 5]", "out", fc1="op: linear, from: x", act1="op: relu, from: fc1",
                fc2="op: linear, from: act1", act2="op: relu, from: fc2", out="op: linear, from: act2")  # fmt: skip


def chain() -> nn.Sequential:
    """All of its units are alive."""
    net = randomise(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double())
    with torch.no_grad():
        net[0].bias.abs_()
        net[2].bias.abs_().add_(0.5)
    return net


def named(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    layers = {"0": "fc1", "2": "fc2", "4": "out"}
    return {f"{layers[name.split('.')[0]]}.{name.split('.')[1]}": tensor for name, tensor in state.items()}


def chain_file(folder: Path, net: nn.Sequential, text: str = CHAIN) -> Path:
    return save(folder, text, named(net.state_dict()))


def after(net: nn.Sequential, path: Path) -> nn.Sequential:
    """The network that a file of a narrower chain holds."""
    state = torch.load(path, weights_only=True)
    sizes = [state["fc1.weight"].shape[0], state["fc2.weight"].shape[0]]
    made = nn.Sequential(nn.Linear(5, sizes[0]), nn.ReLU(), nn.Linear(*sizes), nn.ReLU(), nn.Linear(sizes[1], 3))
    made.double().load_state_dict({key: state[name] for key, name in zip(made.state_dict(), state, strict=True)})
    return made


def test_negative_weights_behind_a_relu_are_proof_without_any_range(tmp_path: Path) -> None:
    """fc2 reads what is never negative. Unit 1 adds up nothing above zero, 2 is above it where nothing else is, 3
    where fc1 says larger numbers than it does on probes, 5 is always the same."""
    net = chain()
    with torch.no_grad():
        net[2].weight[1], net[2].bias[1] = -net[2].weight[1].abs(), -0.0
        net[2].weight[2], net[2].bias[2] = -net[2].weight[2].abs(), 1e-6
        net[2].weight[3], net[2].bias[3] = net[2].weight[3].abs(), -1e4
        net[2].weight[5], net[2].bias[5] = 0.0, 0.75
    known, (width,) = found(chain_file(tmp_path, net), "fc2")
    assert known.proven[width] == {1, 5}
    assert {1, 3, 5} <= set(known.dead[width]) <= {1, 2, 3, 5}
    assert re.fullmatch(
        r"fc2: [34] of 8 units dead on 8192 random probes, 2 of them proven dead for every input", *known.notes
    )
    assert [one.kind for one in known.evidence] == ["probes", "bounds"]
    only, _ = found(chain_file(tmp_path, net), "fc2", proven_only=True)
    assert only.dead[width] == [1, 5] and [one.kind for one in only.evidence] == ["bounds"]
    assert only.notes == ("fc2: 2 of 8 units proven dead for every input",)


def test_what_wakes_on_no_probe_but_on_some_input_is_not_proven(tmp_path: Path) -> None:
    net = chain()
    with torch.no_grad():
        net[0].bias[4] = -100.0
    path = chain_file(tmp_path, net)
    known, (width,) = found(path, "fc1")
    assert known.dead[width] == [4] and known.proven[width] == frozenset()
    waking = 1e3 * net[0].weight[4].detach()[None]
    assert net[0](waking)[0, 4].item() > 0  # an allowed input, and it is alive
    report = netgrow_cli.prune(path, layer="fc1", dead=True, proven=True, output=tmp_path / "same.pt")
    assert not report.plan.changes and "no dead units" in report.notes[-1]


def test_a_stated_range_proves_more_and_is_named(tmp_path: Path) -> None:
    net = chain()
    with torch.no_grad():
        net[0].bias[4] = (
            -float(net[0].weight[4].abs().sum()) * 2.0
        )  # dead within -2 to 2, up to rounding not at the ends
        net[0].bias[5] = -float(net[0].weight[5].abs().sum()) * 2.1
        net[0].bias[6] = -float(net[0].weight[6].abs().sum()) * 1.9
    stated = CHAIN.replace("x: [batch, 5]", "x: {shape: [batch, 5], low: -2, high: 2}")
    known, (width,) = found(chain_file(tmp_path, net, stated), "fc1")
    assert known.proven[width] == {5}
    assert "dead for every input within the ranges of the spec" in known.notes[0]
    corner = 2.0 * net[0].weight[6].detach().sign()[None]
    assert net[0](corner)[0, 6].item() > 0
    assert found(chain_file(tmp_path, net), "fc1")[0].proven[width] == frozenset()


def test_data_beyond_the_stated_range_are_not_proven_away(tmp_path: Path) -> None:
    net = chain()
    with torch.no_grad():
        net[0].weight[4], net[0].bias[4] = torch.eye(5)[0], -3.0
    stated = CHAIN.replace("x: [batch, 5]", "x: {shape: [batch, 5], low: -2, high: 2}")
    path = chain_file(tmp_path, net, stated)
    torch.save(torch.full((3, 5), 4.0), tmp_path / "obs.pt")
    assert 4 in found(path, "fc1")[0].proven[found(path, "fc1")[1][0]]
    for only in (False, True):
        known, (width,) = found(path, "fc1", proven_only=only, probe_data=tmp_path / "obs.pt")
        assert 4 not in known.proven[width] and 4 not in (known.dead[width] if only else known.proven[width])


@both
def test_both_go_exactly(tmp_path: Path, proven: bool) -> None:
    net = chain()
    with torch.no_grad():
        net[2].weight[1], net[2].bias[1] = -net[2].weight[1].abs(), -0.0
        net[2].weight[5], net[2].bias[5] = 0.0, 0.75
        net[2].bias[3] = -1e4
    path = chain_file(tmp_path, net)
    report = netgrow_cli.prune(path, layer="fc2", dead=True, proven=proven, output=tmp_path / "out.pt")
    assert list(report.plan.changes[0].dropped) == ([1, 5] if proven else [1, 3, 5])
    x = inputs(64, 5)
    torch.testing.assert_close(after(net, report.output)(x), net(x), rtol=EXACT, atol=EXACT)
    if proven:  # for every input: far beyond what probes are
        torch.testing.assert_close(after(net, report.output)(1e6 * x), net(1e6 * x), rtol=EXACT, atol=EXACT)
    kinds = [one["kind"] for one in report.as_json()["evidence"]]
    assert kinds == (["bounds"] if proven else ["probes", "bounds"])
    doubts = [line for line in report.warnings if "--probe-data FILE" in line and "--proven" in line]
    assert len(doubts) == (0 if proven else 1)


def test_no_doubt_where_all_that_goes_is_proven(tmp_path: Path) -> None:
    net = chain()
    with torch.no_grad():
        net[2].weight[1], net[2].bias[1] = -net[2].weight[1].abs(), -0.0
    report = netgrow_cli.prune(chain_file(tmp_path, net), layer="fc2", dead=True, output=tmp_path / "out.pt")
    assert "1 of 8 units dead on 8192 random probes, all of them proven dead for every input" in report.notes[0]
    assert [one["kind"] for one in report.as_json()["evidence"]] == ["bounds"]
    assert not report.warnings


def test_data_is_named_as_evidence(tmp_path: Path) -> None:
    net = chain()
    rows = inputs(50, 5)
    torch.save(rows, tmp_path / "obs.pt")
    with torch.no_grad():
        net[0].bias[4] = -(rows @ net[0].weight[4]).max().item() - 0.1
    report = netgrow_cli.prune(chain_file(tmp_path, net), layer="fc1", dead=True, probe_data=tmp_path / "obs.pt",
                               output=tmp_path / "out.pt")  # fmt: skip
    assert report.as_json()["evidence"] == [{"kind": "data", "rows": 50, "origin": "obs.pt", "random": False}]
    assert "dead on the 50 rows of obs.pt, none of them proven" in report.notes[0]
    assert any("dead means dead on the 50 rows of obs.pt; the proof ran on the same rows" in w for w in report.warnings)


def test_proven_units_go_first_where_sizes_are_tied(tmp_path: Path) -> None:
    """Both halves of a chunk lose as many; the one with a proven unit and a dead one loses the proven one."""
    text = spec_of("x: [batch, 5]", "out", fc="op: linear, from: x", act="op: relu, from: fc",
                   halves="op: chunk, from: act, chunks: 2", one='op: linear, from: "halves[0]"',
                   two='op: linear, from: "halves[1]"', out="op: add, from: [one, two]")  # fmt: skip
    state = {"fc.weight": inputs(8, 5, seed=1), "fc.bias": inputs(8, seed=2)}
    for n, name in enumerate(("one", "two")):
        state |= {f"{name}.weight": inputs(3, 4, seed=3 + n), f"{name}.bias": inputs(3, seed=5 + n)}
    state["fc.weight"][0], state["fc.bias"][0] = 0.0, -1.0  # proven
    state["fc.bias"][[2, 5]] = -1e3  # dead on probes
    path = save(tmp_path, text, state)
    report = netgrow_cli.prune(path, layer="fc", dead=True, output=tmp_path / "out.pt")
    assert sorted(list(change.dropped) for change in report.plan.changes) == [[0], [1]]


# -- convolutions ------------------------------------------------------------------------------------------


class Images(nn.Module):
    def __init__(self, padding: int, mode: str = "zeros") -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=padding, padding_mode=mode)
        self.norm, self.out = nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.c2(torch.relu(self.c1(x)))))
        return self.out(nn.functional.max_pool2d(x, 2).mean((2, 3)))


def images_spec(padding: int, mode: str = "zeros") -> str:
    return spec_of(
        "x: [batch, 2, 8, 8]",
        "out",
        c1="op: conv2d, from: x, padding: 1",
        a1="op: relu, from: c1",
        c2=f"op: conv2d, from: a1, padding: {padding}, padding_mode: {mode}",
        norm="op: batch_norm, from: c2",
        a2="op: relu, from: norm",
        pool="op: max_pool2d, from: a2, kernel_size: 2",
        mean="op: mean, from: pool",
        out="op: linear, from: mean",
    )


def images(padding: int, mode: str = "zeros") -> Images:
    """c1: unit 1 is never above zero, 4 constantly 0.6 everywhere. c2: unit 2 is silenced by its norm, 3 reads only
    what is never negative, 5 is put to a constant by its norm."""
    net = randomise(Images(padding, mode).double())
    with torch.no_grad():
        net.c1.weight[[1, 4]], net.c1.bias[1], net.c1.bias[4] = 0.0, -0.5, 0.6
        net.norm.weight[2], net.norm.bias[2] = 0.0, -1.0
        net.norm.weight[5], net.norm.bias[5] = 0.0, 0.3
        net.c2.weight[3], net.c2.bias[3] = -net.c2.weight[3].abs(), -0.1
        net.norm.weight[3], net.norm.running_mean[3], net.norm.bias[3] = 1.0, 0.2, 0.0
    return net


@both
@pytest.mark.parametrize("mode", ("reflect", "circular", "replicate"))
def test_convolutions(tmp_path: Path, proven: bool, mode: str) -> None:
    """Constants fold where every place sees them."""
    done = edit(tmp_path, images_spec(1, mode), images(1, mode), "prune", layer=["c1", "c2"], dead=True, proven=proven)
    assert done.distance(inputs(16, 2, 8, 8)) < EXACT
    assert sorted(list(change.dropped) for change in done.report.plan.changes) == [[1, 4], [2, 3, 5]]
    assert names_of(done) == ["bounds"] and not warned(done, "random probes")


@both
def test_convolutions_that_pad_with_zeros(tmp_path: Path, proven: bool) -> None:
    """A constant shows at the border there, so that it cannot go; zero can."""
    net = images(1)
    with pytest.raises(NotEquivalent):
        edit(tmp_path, images_spec(1), net, "prune", layer="c1", dead=True, proven=proven)
    with torch.no_grad():
        net.c1.bias[4] = -0.6
    done = edit(tmp_path, images_spec(1), net, "prune", layer=["c1", "c2"], dead=True, proven=proven, force=True)
    assert sorted(list(change.dropped) for change in done.report.plan.changes) == [[1, 4], [2, 3, 5]]
    assert done.distance(1e4 * inputs(16, 2, 8, 8)) < EXACT


def test_a_channel_that_only_the_border_wakes_is_alive(tmp_path: Path) -> None:
    """A bound for each place: where taps fall on zeros, less is taken away."""
    net = images(1)
    with torch.no_grad():  # c1's unit 0 is 1 everywhere, and c2's unit 0 takes it away nine times, or less often
        net.c1.weight[0], net.c1.bias[0] = 0.0, 1.0
        net.c2.weight[0], net.c2.bias[0] = 0.0, 8.5
        net.c2.weight[0, 0], net.c2.weight[0, 5] = -1.0, -0.1
        net.norm.weight[0], net.norm.bias[0], net.norm.running_mean[0] = 1.0, 0.0, 0.0
    known, (width,) = found(save(tmp_path, images_spec(1), net.state_dict()), "c2")
    assert 0 not in known.dead[width] and 0 not in known.proven[width]
    net.c2.padding = (0, 0)
    done = edit(tmp_path / "0", images_spec(0), net, "prune", layer="c2", dead=True, proven=True)
    assert 0 in done.report.plan.changes[0].dropped
    assert done.distance(100 * inputs(16, 2, 8, 8)) < EXACT


# -- recurrent layers and attention --------------------------------------------------------------------------


@both
@pytest.mark.parametrize("form", recurrent.FORMS, ids=recurrent.name_of)
def test_recurrent_layers(tmp_path: Path, form: dict[str, Any], proven: bool) -> None:
    net = recurrent.made(form)
    silent = [1] if "proj_size" in form else [1, 3]
    recurrent.silence(net.rnn, dict.fromkeys(recurrent.levels(net.rnn), silent))
    names = [
        info.name
        for info in widths_of(tmp_path, recurrent.text_of(form), net).values()
        if info.size == 5 and info.frozen is None
    ]
    done = recurrent.changed(tmp_path, form, net, "prune", width=names, dead=True, proven=proven)
    recurrent.checked(done, 5 - len(silent))
    assert done.distance(100 * inputs(9, 11, 3)) < EXACT
    assert "bounds" in names_of(done) and not warned(done, "random probes")


def widths_of(folder: Path, text: str, net: nn.Module) -> Any:
    with opened(save(folder / "named", text, net.state_dict()), Options()) as job:
        return job.topology.widths


@both
@pytest.mark.parametrize("side", ("q", "k"))
@pytest.mark.parametrize("way", attention.MIX)
def test_sizes_of_heads(tmp_path: Path, way: str, side: str, proven: bool) -> None:
    net, text = randomise(attention.Attention(way)).double(), attention.spec(way)
    with torch.no_grad():
        for tensor in (getattr(net, side).weight, getattr(net, side).bias):
            tensor.view(4, 3, -1)[:, 1] = 0.0
    name = attention.width(tmp_path, text, net, 3)
    done = edit(tmp_path, text, net, "prune", width=name, dead=True, proven=proven)
    assert attention.new_size(done) == 2 and done.distance(inputs(7, attention.TIME, 6)) < EXACT
    assert names_of(done) == ["bounds"]


@both
@pytest.mark.parametrize("constant", (0.0, 0.7))
def test_sizes_of_values(tmp_path: Path, constant: float, proven: bool) -> None:
    """A mean of one number is that number; it goes into the next bias."""
    net, text = randomise(attention.Attention("default")).double(), attention.spec("default")
    with torch.no_grad():
        net.v.weight.view(4, 5, -1)[:, 2], net.v.bias.view(4, 5)[:, 2] = 0.0, constant
    name = attention.width(tmp_path, text, net, 5, "v")
    done = edit(tmp_path, text, net, "prune", width=name, dead=True, proven=proven)
    assert list(done.report.plan.changes[0].dropped) == [2]
    assert done.distance(inputs(7, attention.TIME, 6)) < EXACT
    assert names_of(done) == ["bounds"]


@pytest.mark.parametrize("first", ("batch, time", "time, batch"))
def test_a_length_that_the_spec_leaves_open_proves_nothing_of_one_length(tmp_path: Path, first: str) -> None:
    """A sum over as many steps as are run here stays below the bias; over more it does not. What no length wakes is
    proven all the same."""
    axis = first.split(", ").index("time")
    text = spec_of(f"x: {{shape: [{first}, 1], low: 0, high: 1}}", "out", total=f"op: sum, from: x, axes: {axis}",
                   fc="op: linear, from: total", act="op: relu, from: fc", out="op: linear, from: act")  # fmt: skip
    state = {"fc.weight": torch.tensor([[1.0], [-1.0], [1.0]]), "fc.bias": torch.tensor([-5.5, 0.0, 0.1]),
             "out.weight": torch.ones(2, 3), "out.bias": torch.zeros(2)}  # fmt: skip
    known, (width,) = found(save(tmp_path, text, state), "fc", proven_only=True)
    assert known.proven[width] == {1}
    fixed = text.replace("time", "5")
    if axis == 1:
        assert found(save(tmp_path, fixed, state), "fc", proven_only=True)[0].proven[width] == {0, 1}
