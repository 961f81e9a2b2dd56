"""Changes of recurrent layers, judged by torch.nn's own, loaded with `fit`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli import NotEquivalent, Refused, SpecError, UsageError
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.proof.probes import random_probes
from tests.equivalence.edits import Edit, edit, inputs, randomise, save, spec_of

EXACT = 1e-12

SINGLE = {"num_layers": 1, "bidirectional": False}
DEEP = {"num_layers": 2, "bidirectional": True}
FORMS: list[dict[str, Any]] = [
    {"op": "lstm", **SINGLE},
    {"op": "lstm", **DEEP},
    {"op": "lstm", **DEEP, "proj_size": 3},
    {"op": "lstm", "num_layers": 2, "bidirectional": False, "bias": False},
    {"op": "gru", **SINGLE},
    {"op": "gru", **DEEP},
    {"op": "rnn", **DEEP},
    {"op": "rnn", "num_layers": 2, "bidirectional": False, "nonlinearity": "relu"},
]
PLAIN = [form for form in FORMS if "proj_size" not in form]
BIASED = [form for form in PLAIN if form.get("bias", True)]


def name_of(form: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" if key != "op" else value for key, value in form.items())


forms = pytest.mark.parametrize("form", FORMS, ids=name_of)
plain = pytest.mark.parametrize("form", PLAIN, ids=name_of)


def layer_of(form: Mapping[str, Any], reads: int, hidden: int) -> Any:
    settings = {key: value for key, value in form.items() if key != "op"}
    return getattr(nn, {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[form["op"]])(
        reads, hidden, batch_first=True, **settings
    )


class Net(nn.Module):
    """A layer before, the recurrent one, and a layer behind its sequence."""

    def __init__(self, form: Mapping[str, Any], hidden: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.rnn = layer_of(form, 4, hidden)
        self.out = nn.Linear((self.rnn.proj_size or hidden) * (1 + self.rnn.bidirectional), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(torch.relu(self.fc(x)))[0])


def text_of(form: Mapping[str, Any], **more: str) -> str:
    settings = f", nonlinearity: {form['nonlinearity']}" if "nonlinearity" in form else ""
    layers = {
        "fc": "op: linear, from: x",
        "act": "op: relu, from: fc",
        "rnn": f"op: {form['op']}, from: act, batch_first: true{settings}",
        "out": "op: linear, from: rnn",
    }
    return spec_of("x: [batch, time, 3]", "out", **{**layers, **more})


def made(form: Mapping[str, Any], hidden: int = 5) -> Net:
    return randomise(Net(form, hidden).double())


def changed(folder: Path, form: Mapping[str, Any], module: nn.Module, command: str, **settings: Any) -> Edit:
    return edit(folder, text_of(form), module, command, **settings)


def levels(module: nn.Module) -> list[str]:
    """The ends of the parameters' names, one for each level and direction."""
    return [name.removeprefix("weight_hh_") for name, _ in module.named_parameters() if name.startswith("weight_hh_")]


def silence(module: Any, units: Mapping[str, Sequence[int]]) -> None:
    """Hidden units that are zero at all times, by level: nothing makes them."""
    size = module.hidden_size
    with torch.no_grad():
        for end, chosen in units.items():
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                tensor = getattr(module, f"{kind}_{end}", None)
                if tensor is not None:
                    for gate in range(tensor.shape[0] // size):
                        tensor[[gate * size + unit for unit in chosen]] = 0.0


def checked(done: Edit, size: int | None = None) -> None:
    """The real modules agree, and are what torch would have made at that size."""
    assert done.distance(inputs(9, 6, 3)) < EXACT
    rnn: Any = done.after.rnn
    if size is not None:
        assert rnn.hidden_size == size
    proj = {"proj_size": rnn.proj_size} if rnn.proj_size else {}
    fresh = type(rnn)(
        rnn.input_size, rnn.hidden_size, rnn.num_layers, bias=rnn.bias, bidirectional=rnn.bidirectional, **proj
    )
    assert {n: t.shape for n, t in fresh.named_parameters()} == {n: t.shape for n, t in rnn.named_parameters()}
    assert [id(one) for one in rnn._flat_weights] == [id(getattr(rnn, name)) for name in rnn._flat_weights_names]


# -- growing ------------------------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("init", ("match", "kaiming", "antisymmetric"))
def test_expand(tmp_path: Path, form: Mapping[str, Any], init: str) -> None:
    module = made(form)
    inner = {"width": "rnn.l0"} if "proj_size" in form else {"layer": "rnn"}
    done = changed(tmp_path, form, module, "expand", **inner, add=4, init=init, check_learnable=True)
    checked(done, 9)
    assert done.report.folded is not None and done.report.folded.whole
    assert done.report.learnable is not None and not done.report.learnable.twins
    if "nonlinearity" not in form:  # (a ReLU may start dead)
        assert done.report.learnable.good
    assert len(done.report.plan.changes) == len(levels(module.rnn))
    assert [(entry.what, entry.before, entry.after) for entry in done.report.plan.code] == [("hidden_size", 5, 9)]
    # Old units read nothing of the new ones, which have weights of their own.
    hh = done.new["rnn.weight_hh_l0"]
    if "proj_size" not in form and init != "antisymmetric":
        assert not bool(hh[:, 5:].any())
    assert bool(hh.unflatten(0, (-1, 9))[:, 5:, : min(5, hh.shape[1])].all())


def test_expand_of_a_projection(tmp_path: Path) -> None:
    form = FORMS[2]
    done = changed(tmp_path, form, made(form), "expand", layer="rnn", add=1)
    checked(done, 5)
    assert done.after.rnn.proj_size == 4
    assert {change.after for change in done.report.plan.changes} == {4}
    for command, settings in (("expand", {"layer": "rnn", "add": 2}), ("prune", {"width": "rnn.l0", "units": [0, 1]})):
        with pytest.raises(SpecError, match="must be below hidden_size"):
            changed(tmp_path / command, form, made(form), command, **settings)
        assert not (tmp_path / command / f"{command}.pt").exists()


def test_what_a_recurrent_layer_reads_grows(tmp_path: Path) -> None:
    for form in FORMS[1], FORMS[7]:
        done = changed(tmp_path / form["op"], form, made(form), "expand", layer="fc", add=3)
        checked(done, 5)
        assert done.after.rnn.input_size == 7


@forms
@pytest.mark.parametrize("noise", (0.0, 0.2))
@pytest.mark.parametrize("ways", (2, 3))
def test_split(tmp_path: Path, form: Mapping[str, Any], noise: float, ways: int) -> None:
    module = made(form, 9)
    units = [1, 0] if "proj_size" in form else [1, 3, 0]
    done = changed(tmp_path, form, module, "split", layer="rnn", units=units, noise=noise, ways=ways)
    checked(done, 9 if "proj_size" in form else 9 + 3 * (ways - 1))
    assert done.report.folded is not None and done.report.folded.whole
    if "proj_size" in form:
        done = changed(tmp_path / "hidden", form, module, "split", width="rnn.l1", units=[2], noise=noise, ways=ways)
        checked(done, 8 + ways)


@forms
def test_split_of_all_and_of_the_best(tmp_path: Path, form: Mapping[str, Any]) -> None:
    module = made(form, 9)
    checked(changed(tmp_path / "all", form, module, "split", layer="rnn", every=True))
    done = changed(tmp_path / "best", form, module, "split", layer="rnn", top=2)
    checked(done)
    assert all(change.after == change.before + 2 for change in done.report.plan.changes)


def test_changes_follow_each_other(tmp_path: Path) -> None:
    form = FORMS[1]
    module = made(form)
    before = module(inputs(9, 6, 3)).detach()
    path = save(
        tmp_path, text_of(form, rnn="op: lstm, from: act, batch_first: true, hidden_size: 5"), module.state_dict()
    )
    for step, (command, settings) in enumerate(
        [("expand", {"add": 2}), ("split", {"units": [5, 0]}), ("expand", {"times": 2.0}), ("split", {"every": True})]
    ):
        output = tmp_path / f"{step}.pt"
        getattr(netgrow_cli, command)(path, layer="rnn", output=output, probes=32, seed=step, **settings)
        path = output
    after = netgrow_cli.fit(copy.deepcopy(module), path)
    assert after.rnn.hidden_size == 36
    assert float((after(inputs(9, 6, 3)) - before).detach().abs().max() / before.abs().max()) < EXACT
    assert "hidden_size: 36" in path.with_name("3.pt.netgrow.yaml").read_text(encoding="utf-8")
    with opened(path, Options()) as job:
        found = certify(job.network, random_probes(job.network.graph, 16, 5), seed=3, dtype="float64", tolerance=1e-9)
        assert found.equivalence.equal, found.culprits


# -- dead units ------------------------------------------------------------------------------------------------


@plain
def test_dead_units_go(tmp_path: Path, form: Mapping[str, Any]) -> None:
    """Other units in each level; all levels lose what the one with the fewest can lose."""
    module = made(form)
    ends = levels(module.rnn)
    silence(module.rnn, {end: [n % 5, (n + 2) % 5, 4][: 2 + (n > 0)] for n, end in enumerate(ends)})
    done = changed(tmp_path, form, module, "prune", layer="rnn", dead=True, probes=64)
    checked(done, 3)
    assert [len(change.dropped) for change in done.report.plan.changes] == [2] * len(ends)
    assert any("dead on" in note for note in done.report.notes)


def test_dead_units_behind_a_projection(tmp_path: Path) -> None:
    form = FORMS[2]
    module = made(form)
    silence(module.rnn, {end: [n] for n, end in enumerate(levels(module.rnn))})
    with torch.no_grad():
        for end in levels(module.rnn):
            getattr(module.rnn, f"weight_hr_{end}")[1] = 0.0
    done = changed(tmp_path, form, module, "prune", width="rnn.l1_reverse", dead=True)
    checked(done, 4)
    assert [change.dropped for change in done.report.plan.changes] == [(3,), (0,), (1,), (2,)]
    done = changed(tmp_path / "proj", form, module, "prune", layer="rnn", dead=True)
    checked(done, 5)
    assert done.after.rnn.proj_size == 2


@plain
def test_stated_units_go(tmp_path: Path, form: Mapping[str, Any]) -> None:
    """The other levels lose their lowest, which are the dead ones."""
    module = made(form)
    silence(module.rnn, {end: [2] for end in levels(module.rnn)})
    done = changed(tmp_path, form, module, "prune", layer="rnn", units=[2])
    checked(done, 4)
    done = changed(tmp_path / "lowest", form, module, "prune", layer="rnn", lowest=1)
    checked(done, 4)
    with pytest.raises(NotEquivalent):
        changed(tmp_path / "live", form, module, "prune", layer="rnn", units=[1])


@plain
@pytest.mark.parametrize("noise", (0.0, 0.2))
def test_recycle(tmp_path: Path, form: Mapping[str, Any], noise: float) -> None:
    module = made(form)
    ends = levels(module.rnn)
    silence(module.rnn, {end: [n % 4, 4] for n, end in enumerate(ends)})
    done = changed(tmp_path / "layer", form, module, "recycle", layer="rnn", noise=noise)
    checked(done, 5)
    said = [end for end in ends if end.startswith(f"l{module.rnn.num_layers - 1}")]
    assert len(done.report.plan.changes) == len(said)
    last = f"rnn.weight_hh_{said[0]}"
    assert not torch.equal(done.new[last], done.old[last])
    if module.rnn.num_layers > 1:
        checked(changed(tmp_path / "inner", form, module, "recycle", width="rnn.l0", noise=noise), 5)


@pytest.mark.parametrize("form", [form for form in BIASED if form["op"] == "rnn"], ids=name_of)
def test_a_constant_unit_is_not_dead_inside(tmp_path: Path, form: Mapping[str, Any]) -> None:
    """It is the same at every step that others see, yet it starts from zero: its readers inside know the difference."""
    module = made(form)
    silence(module.rnn, {end: [2] for end in levels(module.rnn)})
    with torch.no_grad():
        for end in levels(module.rnn):
            getattr(module.rnn, f"bias_ih_{end}")[2] = 0.7
    seen = module.rnn(inputs(9, 6, 4))[0][..., 2].detach()
    assert float(seen.std()) < 1e-15 and float(seen.mean()) > 0.5
    for command, settings in (("prune", {"dead": True}), ("recycle", {})):
        done = changed(tmp_path / command, form, module, command, layer="rnn", **settings)
        assert not any(2 in change.dropped for change in done.report.plan.changes)
    with pytest.raises(NotEquivalent):
        changed(tmp_path / "gone", form, module, "prune", layer="rnn", units=[2])


class LastStep(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(torch.relu(self.fc(x)))[0][:, -1])


def last_step(form: Mapping[str, Any]) -> str:
    return text_of(
        form,
        last="op: slice, from: rnn, axis: 1, start: 4",
        flat="op: squeeze, from: last, axis: 1",
        out="op: linear, from: flat",
    )


def test_a_unit_that_is_zero_where_it_is_seen_may_live_inside(tmp_path: Path) -> None:
    """Unit 1 counts steps, and unit 0 is silent from the third on: only the layer itself reads what it said before."""
    form = {"op": "rnn", **SINGLE, "nonlinearity": "relu"}
    module = randomise(LastStep(form).double())
    silence(module.rnn, {"l0": [0, 1]})
    with torch.no_grad():
        module.rnn.weight_hh_l0[1, 1] = module.rnn.bias_ih_l0[1] = 1.0
        module.rnn.weight_ih_l0[0] = 1.0
        module.rnn.weight_hh_l0[0, 1], module.rnn.bias_ih_l0[0] = -100.0, 150.0
    seen = module.rnn(torch.relu(module.fc(inputs(99, 5, 3))))[0][..., 0]
    assert bool(seen[:, 0].all()) and not bool(seen[:, -1].any())
    done = edit(tmp_path / "dead", last_step(form), module, "prune", layer="rnn", dead=True)
    assert done.report.plan.changes == ()
    with pytest.raises(NotEquivalent):
        edit(tmp_path / "stated", last_step(form), module, "prune", layer="rnn", units=[0])
    silence(module.rnn, {"l0": [0]})
    done = edit(tmp_path / "zero", last_step(form), module, "prune", layer="rnn", dead=True)
    assert [change.dropped for change in done.report.plan.changes] == [(0,)]
    assert done.distance(inputs(9, 5, 3)) < EXACT


@pytest.mark.parametrize("form", BIASED, ids=name_of)
def test_constants_are_not_folded_into_recurrent_layers(tmp_path: Path, form: Mapping[str, Any]) -> None:
    module = made(form)
    with torch.no_grad():
        module.fc.weight[:2] = 0.0
        module.fc.bias[:2] = torch.tensor([0.5, -0.5])
    done = changed(tmp_path / "dead", form, module, "prune", layer="fc", dead=True)
    checked(done, 5)
    assert [change.dropped for change in done.report.plan.changes] == [(1,)]
    assert done.after.rnn.input_size == 3
    with pytest.raises(NotEquivalent):
        changed(tmp_path / "stated", form, module, "prune", layer="fc", units=[0])


def test_duplicates_are_merged(tmp_path: Path) -> None:
    form = {"op": "gru", **SINGLE}
    module = made(form)
    path = changed(tmp_path / "split", form, module, "split", layer="rnn", units=[1, 4], noise=0.0).path
    report = netgrow_cli.prune(path, layer="rnn", duplicates=True, output=tmp_path / "merged.pt", probes=32)
    assert [change.after for change in report.plan.changes] == [5]
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(merged[name], tensor), name


# -- what else sees it --------------------------------------------------------------------------------------------


class Normed(nn.Module):
    """h + rnn(norm(h)), or a norm behind the layer."""

    def __init__(self, form: Mapping[str, Any], norm: nn.Module, before: bool) -> None:
        super().__init__()
        self.fc, self.rnn, self.norm, self.out = nn.Linear(3, 5), layer_of(form, 5, 5), norm, nn.Linear(5, 2)
        self.before = before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc(x)
        return self.out(h + self.rnn(self.norm(h))[0] if self.before else self.norm(self.rnn(h)[0]))


def normed(form: Mapping[str, Any], norm: str, before: bool) -> str:
    layers = {"fc": "op: linear, from: x"}
    rnn = f"op: {form['op']}, batch_first: true, from"
    if before:
        layers |= {"norm": f"op: {norm}, from: fc", "rnn": f"{rnn}: norm", "sum": "op: add, from: [fc, rnn]"}
    else:
        layers |= {"rnn": f"{rnn}: fc", "norm": f"op: {norm}, from: rnn"}
    out = "sum" if before else "norm"
    return spec_of("x: [batch, time, 3]", "out", **layers, out=f"op: linear, from: {out}")


@pytest.mark.parametrize("form", [FORMS[0], FORMS[4], {"op": "rnn", **SINGLE}], ids=name_of)
@pytest.mark.parametrize("before", (True, False))
@pytest.mark.parametrize("kind", ("rms_norm", "layer_norm"))
def test_norms(tmp_path: Path, form: Mapping[str, Any], before: bool, kind: str) -> None:
    """New hidden units can be kept at zero, which is what rms_norm needs; the mean of others they cannot be."""
    norm = nn.RMSNorm(5, 1e-3) if kind == "rms_norm" else nn.LayerNorm(5, 1e-3)
    module = randomise(Normed(form, norm, before).double())
    text = normed(form, f"{kind}, eps: 0.001", before)
    if kind == "layer_norm" and not before:
        with pytest.raises(Refused, match="mean of the others"):
            edit(tmp_path, text, module, "expand", layer="rnn", add=2)
        return
    done = edit(tmp_path, text, module, "expand", layer="rnn", add=2, check_learnable=True)
    assert done.distance(inputs(9, 6, 3)) < EXACT
    assert done.report.learnable is not None and done.report.learnable.good
    if before and kind == "layer_norm":  # what it makes is not zero, though what it reads is
        assert not bool(done.new["rnn.weight_hh_l0"][:, 5:].any())
        assert bool(done.new["rnn.weight_ih_l0"][:, 5:].all())


class States(nn.Module):
    def __init__(self, form: Mapping[str, Any]) -> None:
        super().__init__()
        self.rnn = layer_of(form, 3, 5)
        self.h, self.c = nn.Linear(self.rnn.proj_size or 5, 2), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.rnn(x)[1]
        return self.h(states[0]) + self.c(states[1]) if isinstance(states, tuple) else self.h(states)


@forms
def test_states_as_outputs(tmp_path: Path, form: Mapping[str, Any]) -> None:
    settings = f", nonlinearity: {form['nonlinearity']}" if "nonlinearity" in form else ""
    layers = {
        "rnn": f"op: {form['op']}, from: x, batch_first: true{settings}",
        "h": "op: linear, from: 'rnn[1]'",
        **({"c": "op: linear, from: 'rnn[2]'", "s": "op: add, from: [h, c]"} if form["op"] == "lstm" else {}),
    }
    module = randomise(States(form).double())
    if form["op"] != "lstm":
        del module.c
    text = spec_of("x: [batch, time, 3]", "s" if "s" in layers else "h", **layers)
    with opened(save(tmp_path / "look", text, module.state_dict()), Options()) as job:
        free = [info.name for info in job.topology.widths.values() if info.frozen is None]
    assert len(free) == (2 if "proj_size" in form else 1), "states couple the levels"
    for name in free:
        for command, settings in (("expand", {"add": 1}), ("split", {"units": [0]})):
            done = edit(tmp_path / f"{command}{len(name)}", text, module, command, width=name, **settings)
            assert done.distance(inputs(9, 6, 3)) < EXACT
    silence(module.rnn, {end: [1, 2] for end in levels(module.rnn)})
    if "proj_size" not in form:
        done = edit(tmp_path / "prune", text, module, "prune", width=free[0], dead=True)
        assert [change.dropped for change in done.report.plan.changes] == [(1, 2)]
        assert done.distance(inputs(9, 6, 3)) < EXACT


def test_an_output_of_the_model_keeps_all_levels(tmp_path: Path) -> None:
    module = randomise(layer_of(FORMS[1], 3, 5).double())
    text = spec_of("x: [batch, time, 3]", "rnn", rnn="op: lstm, from: x, batch_first: true, prefix: ''")
    for width in ({"layer": "rnn"}, {"width": "rnn.l0"}):
        with pytest.raises(Refused, match="output of the model"):
            edit(tmp_path / next(iter(width)), text, module, "expand", **width, add=2)


def test_several_widths_that_are_tied_are_one_choice(tmp_path: Path) -> None:
    module = made(FORMS[1])
    done = changed(tmp_path, FORMS[1], module, "expand", layer="rnn", to=8)
    names = [done.report.topology.widths[change.width].name for change in done.report.plan.changes]
    assert sorted(names) == ["rnn.l0", "rnn.l0_reverse", "rnn[0:5]", "rnn[5:10]"]
    assert [note.split()[0] for note in done.report.notes] == [name for name in names if name != "rnn[0:5]"]
    text = spec_of(
        "x: [batch, 4]", "s", a="op: linear, from: x", b="op: linear, from: x", c="op: cat, from: [a, b]",
        r="op: linear, from: c", s="op: linear, from: r",
    )  # fmt: skip
    free = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(4, 5), "r": nn.Linear(10, 4), "s": nn.Linear(4, 2)})
    path = save(tmp_path / "cat", text, free.state_dict())
    with pytest.raises(UsageError, match="choose one"):
        netgrow_cli.expand(path, layer="c", add=2)


# -- loading and resuming -----------------------------------------------------------------------------------------


def test_fit_without_a_spec(tmp_path: Path) -> None:
    """Shapes alone tell a recurrent layer's sizes."""
    for number, form in enumerate(FORMS):
        large, small = made(form, 7), made(form, 5)
        path = tmp_path / f"{number}.pt"
        torch.save(large.state_dict(), path)
        fitted = netgrow_cli.fit(small, path)
        torch.testing.assert_close(fitted(inputs(2, 3, 3)), large(inputs(2, 3, 3)), rtol=0, atol=0)
        assert fitted.rnn.hidden_size == 7
        fitted(inputs(2, 3, 3)).sum().backward()
        assert all(tensor.grad is not None for tensor in fitted.parameters())


@forms
def test_moments_are_those_of_the_larger_network(tmp_path: Path, form: Mapping[str, Any]) -> None:
    """With first moments that are the gradient, those of a split network are its own gradient."""
    module, x, target = made(form), inputs(16, 6, 3), inputs(16, 6, 2, seed=4)

    def gradients(net: nn.Module) -> list[torch.Tensor]:
        net.zero_grad()
        (net(x) - target).square().sum().backward()
        return [tensor.grad.clone() for tensor in net.parameters() if tensor.grad is not None]

    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    state = module.state_dict()
    state = {name: tensor.clone() for name, tensor in state.items()}
    found = gradients(module)
    optimizer.step()
    for tensor, gradient in zip(module.parameters(), found, strict=True):
        optimizer.state[tensor]["exp_avg"] = gradient.clone()
        optimizer.state[tensor]["exp_avg_sq"] = gradient.square()
    module.load_state_dict(state)
    path = save(tmp_path, text_of(form), {"model": state, "optimizer": optimizer.state_dict()})
    width = {"width": "rnn.l0"} if "proj_size" in form else {"layer": "rnn"}
    report = netgrow_cli.split(path, **width, units=[1, 3], noise=0.0, output=tmp_path / "split.pt", probes=32)
    fitted = netgrow_cli.fit(copy.deepcopy(module), report.output)
    tree = torch.load(report.output, weights_only=True)
    for number, gradient in enumerate(gradients(fitted)):
        saved = tree["optimizer"]["state"][number]
        torch.testing.assert_close(saved["exp_avg"], gradient, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(saved["exp_avg_sq"], gradient.square(), rtol=1e-9, atol=1e-9)
    again = torch.optim.Adam(fitted.parameters(), lr=1e-3)
    again.load_state_dict(tree["optimizer"])
    again.step()
    report = netgrow_cli.expand(path, **width, add=3, output=tmp_path / "expanded.pt", probes=32)
    fitted = netgrow_cli.fit(copy.deepcopy(module), report.output)
    tree = torch.load(report.output, weights_only=True)
    for number, tensor in enumerate(fitted.parameters()):
        assert tree["optimizer"]["state"][number]["exp_avg"].shape == tensor.shape


class Towers(nn.Module):
    """Two blocks alike: h + part of a recurrent layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"rnn": nn.LSTM(4, 5, batch_first=True), "up": nn.Linear(5, 12), "down": nn.Linear(6, 4)})
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc(x)
        for block in self.blocks:
            one, other = block["up"](block["rnn"](h)[0]).chunk(2, -1)
            h = h + block["down"](one * other)
        return self.out(h)


def test_blocks_that_are_written_once_are_written_out(tmp_path: Path) -> None:
    """One block's hidden_size changes; outputs of operations that have several are named as such."""
    text = """netgrow: 1
inputs: {x: [batch, time, 3]}
layers:
  fc: {op: linear, from: x}
  "blocks.{i}":
    repeat: auto
    from: fc
    layers:
      rnn: {op: lstm, from: in, batch_first: true, hidden_size: 5}
      up: {op: linear, from: "rnn[0]"}
      parts: {op: chunk, from: up, chunks: 2}
      gated: {op: mul, from: ["parts[0]", "parts[1]"]}
      down: {op: linear, from: gated}
      sum: {op: add, from: [in, down]}
    output: sum
  out: {op: linear, from: blocks}
outputs: [out]
"""
    module = randomise(Towers().double())
    done = edit(tmp_path, text, module, "expand", layer="blocks.1.rnn", add=3)
    assert done.distance(inputs(9, 6, 3)) < EXACT
    written = done.path.with_name("expand.pt.netgrow.yaml").read_text(encoding="utf-8")
    assert "blocks.0.rnn" in written and "hidden_size: 8" in written and "hidden_size: 5" in written
