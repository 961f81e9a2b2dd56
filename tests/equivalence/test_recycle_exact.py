"""Recycling: units that are replaced in their places by copies or by fresh ones, and everything that goes with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import netgrow_cli
from netgrow_cli import NotEquivalent, Refused, UsageError
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.surgery.edit import ELEMENTS, apply_edit
from tests.equivalence.edits import Edit, edit, inputs, randomise, save, spec_of
from tests.equivalence.test_attention_exact import TIME, Attention
from tests.equivalence.test_attention_exact import spec as attention
from tests.equivalence.test_merge_exact import FILTERS, Filters
from tests.equivalence.test_moments import SECOND, by_name, check_goes_on, trained
from tests.equivalence.test_optimizer_steps import DEAD, OPTIMIZERS, close, steps
from tests.equivalence.test_optimizer_steps import trained as stepped
from tests.equivalence.test_recurrent_exact import checked, forms, levels, made, silence, text_of
from tests.equivalence.test_surgery_exact import MLP, Mlp, widths

EXACT = 1e-12
INITS = ("match", "kaiming", "antisymmetric")


def killed(module: Any, units: list[int], layer: str = "a") -> Any:
    """Units that never get above zero."""
    with torch.no_grad():
        getattr(module, layer).weight[units] = 0.0
        getattr(module, layer).bias[units] = -3.0
    return module


def recycled(folder: Path, text: str, module: nn.Module, **settings: Any) -> Edit:
    done = edit(folder, text, module, "recycle", **{"layer": "a", **settings})
    assert {name: tensor.shape for name, tensor in done.new.items()} == {n: t.shape for n, t in done.old.items()}
    return done


# -- fresh units in the places of dead ones -----------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dead", ([0], [1, 4], [0, 2, 5]), ids=str)
def test_fresh_units(tmp_path: Path, dead: list[int], init: str) -> None:
    module = killed(randomise(Mlp()).double(), dead)
    done = recycled(tmp_path, MLP, module, fresh=True, init=init, check_learnable=True)
    (made,) = done.report.plan.changes
    assert made.fresh == made.dropped == tuple(dead) and not made.copies
    live = [unit for unit in range(6) if unit not in dead]
    assert torch.equal(done.new["a.weight"][live], done.old["a.weight"][live])
    assert torch.equal(done.new["b.weight"][:, live], done.old["b.weight"][:, live])
    assert bool(done.new["a.weight"][dead].all()) and not bool(done.new["a.bias"][dead].any())
    pairs = list(zip(dead[0::2], dead[1::2], strict=False)) if init == "antisymmetric" else []
    for one, other in pairs:
        assert torch.equal(done.new["a.weight"][one], done.new["a.weight"][other])
        assert torch.equal(done.new["b.weight"][:, one], -done.new["b.weight"][:, other])
        assert bool(done.new["b.weight"][:, one].all())
    alone = [unit for unit in dead if not any(unit in pair for pair in pairs)]
    assert not bool(done.new["b.weight"][:, alone].any())
    assert done.distance(inputs(9, 4)) < EXACT
    assert done.report.folded is not None and not done.report.folded.differing
    assert done.report.as_json()["widths"][0]["fresh"] == len(dead)
    if init == "match":
        spread = done.old["a.weight"].std(correction=0)
        assert 0.3 * spread < done.new["a.weight"][dead].std() < 3 * spread
    same, folded = netgrow_cli.verify(tmp_path / "net.pt", done.path, probes=64)
    assert same.equal and folded is not None and not folded.differing


@pytest.mark.parametrize("fresh", (True, False))
@pytest.mark.parametrize("value", (0.0, 0.8))
def test_a_constant_is_folded_away(tmp_path: Path, fresh: bool, value: float) -> None:
    """What a dead unit gave its readers stays; its own old outgoing weights do not."""
    module = randomise(Mlp(torch.tanh)).double()
    with torch.no_grad():
        module.a.weight[2], module.a.bias[2] = 0.0, value
    done = recycled(tmp_path, MLP.replace("relu", "tanh"), module, fresh=fresh)
    moved = done.old["b.weight"][:, 2] * np.tanh(value)
    torch.testing.assert_close(done.new["b.bias"], done.old["b.bias"] + moved, rtol=1e-12, atol=1e-13)
    assert done.distance(inputs(9, 4)) < EXACT


@pytest.mark.parametrize("fresh", (True, False))
def test_filters(tmp_path: Path, fresh: bool) -> None:
    module = randomise(Filters(bias=True)).double()
    with torch.no_grad():
        for unit in (0, 3):
            module.n.weight[unit], module.n.bias[unit] = 1e-3, -9.0
    done = recycled(tmp_path, FILTERS, module, fresh=fresh, check_learnable=True)
    assert done.distance(inputs(9, 2, 6, 6)) < EXACT
    if fresh:
        for name, wanted in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            assert bool((done.new[f"n.{name}"][[0, 3]] == wanted).all()), name
        read = done.new["b.weight"].unflatten(1, (6, 4))
        (change,) = done.report.plan.changes
        live = [unit for unit in range(6) if unit not in change.fresh]
        assert {0, 3} <= set(change.fresh) and len(live) > 2
        assert not bool(read[:, list(change.fresh)].any()) and bool(read[:, live].all())


@pytest.mark.parametrize("fresh", (True, False))
@forms
def test_recurrent_units(tmp_path: Path, form: Any, fresh: bool) -> None:
    """Zero at all steps, in each layer and direction; fresh ones have rows of every gate and are read by nobody."""
    module = made(form)
    silence(module.rnn, {end: [1, 3] for end in levels(module.rnn)})
    with opened(save(tmp_path / "look", text_of(form), module.state_dict()), Options()) as job:
        hidden = [w.name for w in job.topology.widths.values() if w.frozen is None and w.size == 5]
    done = edit(tmp_path, text_of(form), module, "recycle", width=hidden, fresh=fresh)
    assert done.report.plan.changes
    checked(done, 5)
    for change in done.report.plan.changes:
        assert {1, 3} <= set(change.dropped) and change.fresh == (change.dropped if fresh else ())
    if fresh and form["op"] != "rnn" and "proj_size" not in form:
        hh = done.new["rnn.weight_hh_l0"]
        assert not bool(hh[:, [1, 3]].any())
        assert bool(hh.unflatten(0, (-1, 5))[:, [1, 3]][..., [0, 2, 4]].all())


@pytest.mark.parametrize("fresh", (True, False))
@pytest.mark.parametrize("way", ("size", "values", "heads"))
def test_attention(tmp_path: Path, way: str, fresh: bool) -> None:
    module, text = randomise(Attention("default")).double(), attention("default")
    size = {"size": 3, "values": 5, "heads": 4}[way]
    with torch.no_grad():
        for tensor in (module.k.weight, module.k.bias) if way == "size" else (module.v.weight, module.v.bias):
            parts = tensor.view(4, -1, *tensor.shape[1:])
            (parts[1] if way == "heads" else parts[:, 1])[...] = 0.0
    (name, *_) = [name for name, many in widths(tmp_path, text, module).items() if many == size]
    done = edit(tmp_path, text, module, "recycle", width=name, fresh=fresh)
    assert [(change.dropped, bool(change.fresh)) for change in done.report.plan.changes] == [((1,), fresh)]
    assert done.distance(inputs(7, TIME, 6)) < EXACT
    if fresh:
        made = done.new["k.weight" if way == "size" else "v.weight"].view(4, -1, 6)
        assert bool((made[1] if way == "heads" else made[:, 1]).all())


def test_two_layers_at_once(tmp_path: Path) -> None:
    """Fresh rows and fresh columns of one matrix: what they share reads nothing of what is new."""
    text = spec_of("x: [batch, 4]", "c", a="op: linear, from: x", r="op: relu, from: a", b="op: linear, from: r",
                   s="op: relu, from: b", c="op: linear, from: s")  # fmt: skip

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.a(x).relu()).relu())

    module = killed(killed(randomise(Deep()).double(), [1, 3]), [0, 2], "b")
    for fresh in (True, False):
        done = recycled(tmp_path / str(fresh), text, module, layer=["a", "b"], fresh=fresh)
        assert len(done.report.plan.changes) == 2
        assert done.distance(inputs(9, 4)) < EXACT


@pytest.mark.parametrize("name", ("net.safetensors", "net.pt"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_large_tensors_by_blocks(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Rows and columns in the middle of what is edited block by block, as if it were edited at once."""
    text = spec_of("x: [batch, 60]", "c", a="op: linear, from: x", r="op: relu, from: a", b="op: linear, from: r",
                   s="op: relu, from: b", c="op: linear, from: s")  # fmt: skip
    module = nn.ModuleDict({"a": nn.Linear(60, 700), "b": nn.Linear(700, 800), "c": nn.Linear(800, 3)})
    randomise(module).to(dtype)
    module.a.bias.detach().abs_()
    module.b.bias.detach().add_(20.0)  # (so that no other unit is dead)
    module = killed(killed(module, [0, 7, 350, 699]), [3, 400, 401, 799], "b")
    assert module.b.weight.numel() > 2 * ELEMENTS
    path = save(tmp_path, text, module.state_dict(), name)
    report = netgrow_cli.recycle(path, layer=["a", "b"], fresh=True, probes=1024)
    assert [change.dropped for change in report.plan.changes] == [(0, 7, 350, 699), (3, 400, 401, 799)]
    new = load_file(report.output) if name.endswith("rs") else torch.load(report.output, weights_only=True)
    assert set(report.plan.edits) == set(module.state_dict()) - {"c.bias"}
    for key, edited in report.plan.edits.items():
        assert torch.equal(new[key], apply_edit(module.state_dict()[key], edited, 0)), key
    assert not bool(new["b.weight"][:, [0, 7, 350, 699]].any())


# -- which units -----------------------------------------------------------------------------------------------------


def pairs(done: Edit) -> dict[int, int]:
    (change,) = done.report.plan.changes
    return {new: old for old, group in change.copies.items() for new in group if new != old}


def test_donors_are_the_best_each_as_seldom_as_possible(tmp_path: Path) -> None:
    module = killed(randomise(Mlp()).double(), [0, 2, 4])
    with torch.no_grad():
        for unit, size in ((1, 1.0), (3, 3.0), (5, 2.0), (2, 50.0)):
            module.a.weight[unit] *= size / module.a.weight[unit].norm() if unit != 2 else 1.0
    assert pairs(recycled(tmp_path, MLP, module, by="incoming")) == {0: 3, 2: 5, 4: 1}
    killed(module, [1, 5])
    assert pairs(recycled(tmp_path / "one", MLP, module, by="incoming")) == dict.fromkeys((0, 1, 2, 4, 5), 3)
    assert recycled(tmp_path / "five", MLP, module).distance(inputs(9, 4)) < EXACT


def test_stated_units_are_lossy_where_they_live(tmp_path: Path) -> None:
    module = killed(randomise(Mlp()).double(), [2])
    done = recycled(tmp_path / "dead", MLP, module, units=[2])
    assert list(pairs(done)) == [2] and done.distance(inputs(9, 4)) < EXACT
    for fresh in (True, False):
        with pytest.raises(NotEquivalent, match=r"live units were recycled.*--allow-drift X"):
            recycled(tmp_path / "live", MLP, module, units=[1], fresh=fresh)
        assert not (tmp_path / "live" / "recycle.pt").exists()
        done = recycled(tmp_path / str(fresh), MLP, module, units=[1], fresh=fresh, allow_drift=10.0)
        assert done.report.equivalence is not None
        assert done.report.equivalence.max_rel > 1e-3 and done.distance(inputs(99, 4)) > 1e-3
        if not fresh:  # (a dead unit is no donor)
            assert pairs(done)[1] not in (1, 2)


def test_dormant_units(tmp_path: Path) -> None:
    """Mean activation at most tau times the mean over the layer's units, as ReDo has it."""
    module = killed(randomise(Mlp()).double(), [2])
    with torch.no_grad():
        module.a.weight[4] *= 1e-3
        module.a.bias[4] = -1e-4
    x = inputs(4096, 4, seed=5)
    np.save(tmp_path / "x.npy", x.numpy())
    sizes = module.a(x).relu().mean(0)
    scores = (sizes / sizes.mean()).tolist()
    assert scores[2] == 0.0 < scores[4] < 0.01 < min(scores[unit] for unit in (0, 1, 3, 5))
    data = {"probe_data": tmp_path / "x.npy"}
    assert list(pairs(recycled(tmp_path / "zero", MLP, module, dormant=0.0, probes=4096, **data))) == [2]
    low = recycled(tmp_path / "low", MLP, module, dormant=0.01, probes=4096, allow_drift=1.0, **data)
    assert sorted(pairs(low)) == [2, 4]
    lowest = recycled(tmp_path / "two", MLP, module, lowest=2, by="activation", allow_drift=1.0, probes=4096, **data)
    assert sorted(pairs(lowest)) == [2, 4]
    with pytest.raises(NotEquivalent, match="live units were recycled"):
        recycled(tmp_path / "refused", MLP, module, dormant=0.01, probes=4096, **data)


def test_all_units_dead(tmp_path: Path) -> None:
    module = killed(randomise(Mlp()).double(), list(range(6)))
    with pytest.raises(Refused, match=r"all of its units are dead.*--fresh"):
        recycled(tmp_path / "copies", MLP, module)
    done = recycled(tmp_path, MLP, module, fresh=True)
    assert done.report.plan.changes[0].fresh == tuple(range(6))
    x = inputs(9, 4)
    assert torch.allclose(done.before(x), done.after(x), rtol=0, atol=1e-14)
    assert bool((done.after.a(x) > 0).any(0).sum() > 2)


def test_nothing_dead_is_a_copy(tmp_path: Path) -> None:
    done = recycled(tmp_path, MLP, randomise(Mlp(torch.nn.functional.gelu)).double(), fresh=True)
    assert not done.report.plan.changes and done.report.notes[-1].startswith("no dead units")
    assert all(torch.equal(done.new[name], tensor) for name, tensor in done.old.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units": [1], "dormant": 0.1}, "one of these"),
        ({"proven": True, "units": [1]}, "one of these"),
        ({"lowest": 2, "dormant": 0.1}, "one of these"),
        ({"dormant": -1.0}, "--dormant -1"),
        ({"dormant": float("nan")}, "--dormant nan"),
        ({"noise": float("nan")}, "--noise nan"),
        ({"init": "kaiming"}, "--fresh"),
        ({"fresh": True, "noise": 0.1}, "--noise 0.1"),
        ({"lowest": 2, "round_to": 2}, "--round-to"),
        ({"units": [6]}, "units 0 to 5"),
    ],
    ids=str,
)
def test_what_cannot_be_meant(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recycled(tmp_path, MLP, randomise(Mlp()), **settings)


# -- optimizers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("adamw", "amsgrad", "sgd"))
def test_moments_of_fresh_units(tmp_path: Path, kind: str) -> None:
    """First moments 0, second ones the mean of those of the units that stay; the others as they were."""
    module = killed(randomise(Mlp()), [2, 3])
    path, tree = trained(tmp_path, kind, module, MLP)
    report = netgrow_cli.recycle(path, layer="a", probes=64, fresh=True)
    old, new = by_name(tree), by_name(torch.load(report.output, weights_only=True))
    kept, fresh = torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3])
    for name, axis in (("a.weight", 0), ("a.bias", 0), ("b.weight", 1)):
        for key, moment in old[name].items():
            live = moment.index_select(axis, kept)
            assert torch.equal(new[name][key].index_select(axis, kept), live)
            started = new[name][key].index_select(axis, fresh)
            wanted = float(live.double().mean()) if key in SECOND else 0.0
            torch.testing.assert_close(started, torch.full_like(started, wanted), rtol=1e-6, atol=1e-30)
    assert all(torch.equal(new["b.bias"][key], moment) for key, moment in old["b.bias"].items())
    check_goes_on(module, path, report.output, kind)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fresh_units_step_no_faster_than_others(tmp_path: Path, kind: str) -> None:
    path, module, optimizer = stepped(tmp_path, kind)
    new = netgrow_cli.recycle(path, layer="a", fresh=True, probes=64).output
    before, old, start, made = steps(new, kind, module, optimizer)
    others = [unit for unit in range(6) if unit != DEAD]
    for name, axis in (("a.weight", 0), ("a.bias", 0), ("b.weight", 1)):
        place = torch.tensor(others)
        close(made[name].index_select(axis, place), old[name].index_select(axis, place))
        moved = (made[name] - start[name]).detach().select(axis, DEAD).abs().max()
        assert float(moved) <= 3 * float((old[name] - before[name]).detach().abs().max()) + 1e-12
    close(made["b.bias"], old["b.bias"])


class ActorCritic(nn.Module):
    """As PPO's: a policy and a value, each of two layers, and a free log standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.value = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.policy(x), self.value(x)


ACTOR_CRITIC = spec_of(
    "obs: [batch, 8]", "policy.4, value.2",
    **{"policy.0": "op: linear, from: obs", "policy.1": "op: relu, from: policy.0",
       "policy.2": "op: linear, from: policy.1", "policy.3": "op: relu, from: policy.2",
       "policy.4": "op: linear, from: policy.3", "value.0": "op: linear, from: obs",
       "value.1": "op: relu, from: value.0", "value.2": "op: linear, from: value.1"},
) + "ignore: [log_std]\n"  # fmt: skip


@pytest.mark.parametrize("fresh", (True, False))
def test_an_agent_with_its_optimizer(tmp_path: Path, fresh: bool) -> None:
    """The case of the forum: units of the policy died, training is to go on from the file."""
    agent = randomise(ActorCritic()).train()
    with torch.no_grad():
        agent.policy[0].bias[:10], agent.policy[2].bias[3:9] = -20.0, -50.0
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4)

    def step(module: nn.Module, adam: torch.optim.Optimizer, seed: int) -> None:
        mean, value = module(inputs(256, 8, seed=seed).float())
        adam.zero_grad()
        (mean.square().mean() + value.square().mean() + module.log_std.square().sum()).backward()
        adam.step()

    for seed in range(5):
        step(agent, optimizer, seed)
    x = inputs(500, 8)
    np.save(tmp_path / "obs.npy", x.numpy())
    state = {"model": agent.state_dict(), "optimizer": optimizer.state_dict(), "updates": 5}
    path = save(tmp_path, ACTOR_CRITIC, copy.deepcopy(state), "ckpt.pt")
    report = netgrow_cli.recycle(
        path, layer="policy.*", fresh=fresh, probe_data=tmp_path / "obs.npy", check_learnable=True
    )
    assert [change.dropped for change in report.plan.changes] == [tuple(range(10)), tuple(range(3, 9))]
    assert report.learnable is not None and report.learnable.good
    old, new = (netgrow_cli.fit(ActorCritic().double(), file) for file in (path, report.output))
    for one, other in zip(old(x), new(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    resumed = netgrow_cli.fit(ActorCritic(), report.output).train()
    adam = torch.optim.Adam(resumed.parameters(), lr=3e-4)
    adam.load_state_dict(torch.load(report.output, weights_only=True)["optimizer"])
    before = copy.deepcopy(resumed.state_dict())
    for seed in range(5, 8):
        step(resumed, adam, seed)
    moved = (resumed.state_dict()["policy.0.weight"] - before["policy.0.weight"]).abs().amax(1)
    assert bool((moved > 0).all()) and float(moved.max()) < 10 * 3e-4 * 3
