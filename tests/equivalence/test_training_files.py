"""Training checkpoints as frameworks lay them out: averages, target networks, twins, several optimizers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import netgrow_cli
from netgrow_cli import CheckpointError, NotEquivalent, UsageError
from tests.equivalence.edits import inputs, randomise, save, spec_of

MLP = spec_of("x: [batch, 4]", "b", a="op: linear, from: x", r="op: relu, from: a", b="op: linear, from: r")
DEAD = 2


class Mlp(nn.Module):
    def __init__(self, units: int = 6, outputs: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, units), nn.Linear(units, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


class Conv(nn.Module):
    """Batch norm, a residual sum, a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.fc, self.out = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6 * 16, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.stem(x.reshape(-1, 1, 4, 4))).relu()
        h = (h + self.inner(h)).relu()
        return self.out(self.fc(h.flatten(1)).relu())


CONV = spec_of(
    "x: [batch, 1, 4, 4]",
    "out",
    stem="op: conv2d, from: x, padding: 1",
    norm="op: batch_norm, from: stem",
    r="op: relu, from: norm",
    inner="op: conv2d, from: r, padding: 1",
    s="op: add, from: [r, inner]",
    t="op: relu, from: s",
    flat="op: flatten, from: t",
    fc="op: linear, from: flat",
    u="op: relu, from: fc",
    out="op: linear, from: u",
)


def net(seed: int, dead: bool = True) -> Mlp:
    module = Mlp()
    randomise(module, seed)
    if dead:
        with torch.no_grad():
            module.a.weight[DEAD], module.a.bias[DEAD] = 0.0, -2.0
    return module


def sd(seed: int, dead: bool = True) -> dict[str, torch.Tensor]:
    return net(seed, dead).state_dict()


def put(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def outputs(state: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    cut = {name[len(prefix) :]: value.double() for name, value in state.items() if name.startswith(prefix)}
    units, out = cut["a.weight"].shape[0], cut["b.weight"].shape[0]
    module = Mlp(units, out).double()
    module.load_state_dict({name: cut[name] for name in module.state_dict()})
    with torch.no_grad():
        return module(inputs(50, 4))


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-6) -> None:
    assert float((one - other).abs().max()) <= tolerance * float(one.abs().max())


COUNTERS = {"n_averaged": torch.tensor(3), "decay": 0.99}
# A file, the key of the model in it, what goes along, and what is warned about.
LAYOUTS: dict[str, tuple[dict[str, Any], str | None, list[str], list[str]]] = {
    "timm": ({"state_dict": sd(0), "state_dict_ema": sd(1)}, None, ["state_dict_ema"], []),
    "swa_utils": ({"model": sd(0), "swa": {**put("module.", sd(1)), "n_averaged": torch.tensor(3)}}, None, ["swa"], []),
    "model_ema.module": ({"model": sd(0), "model_ema": {"module": sd(1), **COUNTERS}}, None, ["model_ema.module"], []),
    "wrapped": ({"model": put("module.", sd(0)), "ema": put("_orig_mod.", sd(1))}, None, ["ema"], []),
    "best": ({"model": sd(0), "best_state_dict": sd(1), "best_acc": 0.9}, None, ["best_state_dict"], []),
    "dqn": ({"policy_net": sd(0), "target_net": sd(1)}, "policy_net", ["target_net"], []),
    "q and its target": ({"q": sd(0), "target_q": sd(1)}, "q", ["target_q"], []),
    "student": ({"student": sd(0), "teacher": sd(1)}, "student", ["teacher"], []),
    "camel case": ({"model": sd(0), "emaModel": sd(1)}, None, ["emaModel"], []),
    "lightning's callback": (
        {"state_dict": sd(0), "current_model_state": sd(1), "callbacks": {"x": {"best_model_score": 1}}},
        None,
        ["current_model_state"],
        [],
    ),
    "twins": ({"q1": sd(0), "q2": sd(1)}, "q1", [], ["q2"]),
    "twins and their targets": (
        {"q1": sd(0), "q2": sd(1), "target_q1": sd(2), "target_q2": sd(3)},
        "q1",
        ["target_q1"],
        ["q2", "target_q2"],
    ),
    "twins and one target": ({"q1": sd(0), "q2": sd(1), "target": sd(2)}, "q1", [], ["q2", "target"]),
    "nested twins": (
        {"agent": {"c1": sd(0), "c2": sd(1), "c1_target": sd(2)}},
        "agent.c1",
        ["agent.c1_target"],
        ["agent.c2"],
    ),
    "another's average": ({"model": sd(0), "ema_decoder": sd(1)}, None, [], ["ema_decoder"]),
    "the other way round": ({"model": sd(0), "ema": sd(1)}, "ema", [], ["model"]),
    "another network": (
        {"model": sd(0), "ema": {**sd(1), "b.weight": torch.zeros(5, 6), "b.bias": torch.zeros(5)}},
        None,
        [],
        ["ema"],
    ),
    "a larger network": ({"model": sd(0), "ema": {**sd(1), "c.weight": torch.zeros(5, 6)}}, None, [], ["ema"]),
    "another's list": ({"model": sd(0), "shadow_params": [torch.zeros(2, 2)]}, None, [], ["shadow_params"]),
    "a list of data": ({"model": sd(0), "targets": [torch.zeros(2, 2)]}, None, [], []),
    "other names": ({"model": sd(0), "ema": put("net_", sd(1))}, None, [], []),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_which_state_dicts_go_along(tmp_path: Path, name: str) -> None:
    tree, key, along, warned = LAYOUTS[name]
    report = netgrow_cli.expand(save(tmp_path, MLP, tree), layer="a", add=3, key=key, probes=32)
    assert [one["key"] for one in report.as_json()["also"]] == along
    assert [text.split("'")[1] for text in report.warnings] == warned
    assert all(one["equivalence"]["equal"] and one["folded_back"] for one in report.as_json()["also"])
    new = torch.load(report.output, weights_only=True)

    def check(old: Any, now: Any, path: tuple[str, ...]) -> None:
        label = ".".join(path)
        if isinstance(old, dict) and not any(torch.is_tensor(value) and value.dim() for value in old.values()):
            assert old.keys() == now.keys()
            for part in old:
                check(old[part], now[part], (*path, part))
        elif isinstance(old, dict):
            prefix = next(n for n in old if n.endswith("a.weight"))[: -len("a.weight")]
            changed = label in along or label == (key or next(iter(tree)))
            assert now[prefix + "a.weight"].shape[0] == (9 if changed else 6)
            if "c.weight" not in old and "net_" not in prefix and old[prefix + "b.weight"].shape[0] == 3:
                same(outputs(old, prefix), outputs(now, prefix))
        elif torch.is_tensor(old):
            assert torch.equal(old, now)
        elif isinstance(old, list):
            assert all(map(torch.equal, old, now))
        else:
            assert old == now

    check(tree, new, ())


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_fresh_values_are_the_models_and_copies_are_copies(tmp_path: Path, dtype: torch.dtype) -> None:
    """What is new in the model has never been another, so it is its own average; copied rows stay the average's."""
    ema = {name: value.to(dtype) for name, value in sd(1).items()}
    path = save(tmp_path, MLP, {"model": sd(0), "ema": ema})
    grown = torch.load(netgrow_cli.expand(path, layer="a", add=3, probes=32).output, weights_only=True)
    assert torch.equal(grown["ema"]["a.weight"][6:], grown["model"]["a.weight"][6:].to(dtype))
    assert torch.equal(grown["ema"]["a.weight"][:6], ema["a.weight"])
    assert grown["ema"]["a.weight"].dtype == dtype
    assert not bool(grown["ema"]["b.weight"][:, 6:].any())
    split = torch.load(netgrow_cli.split(path, layer="a", units=[4], probes=32).output, weights_only=True)["ema"]
    assert torch.equal(split["a.weight"][6], ema["a.weight"][4])
    assert torch.equal(
        (split["b.weight"][:, 4].double() + split["b.weight"][:, 6].double()).to(dtype), ema["b.weight"][:, 4]
    )
    assert not torch.equal(split["b.weight"][:, 4], split["b.weight"][:, 6])
    pair = netgrow_cli.expand(path, layer="a", add=2, init="antisymmetric", output=tmp_path / "pair.pt", probes=32)
    made = torch.load(pair.output, weights_only=True)
    assert torch.equal(made["ema"]["b.weight"][:, 6:], made["model"]["b.weight"][:, 6:].to(dtype))
    assert bool(made["ema"]["b.weight"][:, 6:].any())


@pytest.mark.parametrize("command", ("prune", "recycle"))
def test_units_that_are_dead_in_the_model_alone(tmp_path: Path, command: str) -> None:
    """They are alive in an average that lags: it is not equal afterwards, which only a person can accept."""
    settings: dict[str, Any] = {"units": [DEAD]} if command == "prune" else {}
    change = getattr(netgrow_cli, command)
    path = save(tmp_path, MLP, {"model": sd(0), "ema": sd(1, dead=False)})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NotEquivalent, match=r"'ema', which goes along.*--leave ema.*--allow-drift"):
        change(path, layer="a", probes=64, **settings)
    assert sorted(tmp_path.iterdir()) == before
    report = change(path, layer="a", probes=64, leave="ema", **settings)
    new = torch.load(report.output, weights_only=True)
    assert report.as_json()["also"] == [] and not any("ema" in text for text in report.warnings)
    assert torch.equal(new["ema"]["a.weight"], sd(1, dead=False)["a.weight"])
    drifted = change(path, layer="a", probes=64, allow_drift=9.0, output=tmp_path / "drift.pt", **settings)
    assert not drifted.as_json()["also"][0]["equivalence"]["equal"]
    good = save(tmp_path / "good", MLP, {"model": sd(0), "ema": sd(1)})
    new = torch.load(change(good, layer="a", probes=64, **settings).output, weights_only=True)
    same(outputs(sd(1)), outputs(new["ema"]))


def test_a_constant_unit_leaves_its_own_value_behind(tmp_path: Path) -> None:
    """A unit that is constant, not zero, folds into the next bias: in the average by the average's constant."""
    states = [sd(0), sd(1)]
    for value, state in zip((1.5, 0.5), states, strict=True):
        state["a.bias"][DEAD] = value
    report = netgrow_cli.prune(
        save(tmp_path, MLP, {"model": states[0], "ema": states[1]}), layer="a", units=[DEAD], probes=64
    )
    new = torch.load(report.output, weights_only=True)
    for key, state in zip(("model", "ema"), states, strict=True):
        assert not torch.equal(new[key]["b.bias"], state["b.bias"])
        same(outputs(state), outputs(new[key]))


def test_twins_go_along_when_asked(tmp_path: Path) -> None:
    tree = {"q1": sd(0), "q2": sd(1), "target_q2": sd(2), "actor": {"x.weight": torch.zeros(3, 3)}}
    path = save(tmp_path, MLP, tree)
    with pytest.raises(UsageError, match=r"--also q3: .*'q2', 'target_q2'"):
        netgrow_cli.expand(path, layer="a", add=1, key="q1", also="q3")
    report = netgrow_cli.expand(path, layer="a", add=1, key="q1", also=["q2", "target_q2"], probes=32)
    new = torch.load(report.output, weights_only=True)
    assert [one["asked"] for one in report.as_json()["also"]] == [True, True] and not report.warnings
    for key in ("q1", "q2", "target_q2"):
        assert new[key]["a.weight"].shape == (7, 4)
        same(outputs(tree[key]), outputs(new[key]))
    other = {"model": sd(0), "wide": {**sd(1), "b.weight": torch.zeros(5, 6), "b.bias": torch.zeros(5)}}
    with pytest.raises(UsageError, match=r"--also wide: it is not the same network: b.weight is \[5, 6\] there"):
        netgrow_cli.expand(save(tmp_path / "other", MLP, other), layer="a", add=1, also="wide")
    plain = save(tmp_path / "plain", MLP, sd(0), "net.safetensors")
    with pytest.raises(UsageError, match=r"--also ema: net\.safetensors holds one"):
        netgrow_cli.expand(plain, layer="a", add=1, also="ema")


def test_shared_tensors_stay_shared(tmp_path: Path) -> None:
    """A best state dict that is the model's own tensors, and ties inside an average."""
    model, ema = sd(0), sd(1)
    tree = {"model": model, "best_state_dict": dict(model), "ema": ema, "teacher": dict(ema), "same": None}
    tree["same"] = tree["model"]
    new = torch.load(
        netgrow_cli.expand(save(tmp_path, MLP, tree), layer="a", add=2, probes=32).output, weights_only=True
    )
    assert new["same"] is new["model"]
    for one, other in (("model", "best_state_dict"),):
        for name in model:
            assert new[one][name].data_ptr() == new[other][name].data_ptr()
    same(outputs(ema), outputs(new["teacher"]))


def test_names_that_end_alike_are_no_other_network(tmp_path: Path) -> None:
    """`in.a.weight` is a layer of its own, in the model and in its average."""
    text = spec_of(
        "x: [batch, 4]",
        "b",
        **{"in.a": "op: linear, from: x", "r": "op: relu, from: in.a", "a": "op: linear, from: r"},
        b="op: linear, from: a",
    )
    torch.manual_seed(0)
    shapes = {"in.a": (4, 4), "a": (6, 4), "b": (3, 6)}
    states = [
        {
            f"{name}.{part}": torch.randn(size)
            for name, size in shapes.items()
            for part, size in (("weight", size), ("bias", size[:1]))
        }
        for _ in range(2)
    ]
    tree = {"model": states[0], "ema": states[1]}
    report = netgrow_cli.expand(save(tmp_path, text, tree), layer="a", add=3, probes=32)
    assert [one["key"] for one in report.as_json()["also"]] == ["ema"] and not report.warnings
    both = {**put("net.", states[0]), **put("target_net.", states[1])}
    report = netgrow_cli.expand(
        save(tmp_path / "one", text, both), layer=["a", "in.a"], add=3, prefix="net.", probes=32
    )
    assert [one["key"] for one in report.as_json()["also"]] == ["target_net"] and not report.warnings
    assert torch.load(report.output, weights_only=True)["target_net.in.a.weight"].shape == (7, 4)


def test_a_list_of_averages(tmp_path: Path) -> None:
    """torch_ema keeps averages without names, in the order of the parameters."""
    listed = {"decay": 0.99, "num_updates": 3, "shadow_params": list(sd(1).values()), "collected_params": None}
    report = netgrow_cli.expand(save(tmp_path, MLP, {"model": sd(0), "ema": listed}), layer="a", add=3, probes=32)
    (along,) = report.as_json()["also"]
    assert along["key"] == "ema.shadow_params" and along["folded_back"] and not report.warnings
    new = torch.load(report.output, weights_only=True)["ema"]
    assert new["num_updates"] == 3 and [tuple(value.shape) for value in new["shadow_params"]] == NEW
    same(outputs(sd(1)), outputs(dict(zip(sd(1), new["shadow_params"], strict=True))))


def test_one_dict_with_prefixes(tmp_path: Path) -> None:
    """Lightning: the model and its average are modules of one module."""
    mixed = {**put("model.", sd(0)), **put("ema_model.module.", sd(1)), "ema_model.n_averaged": torch.tensor(3)}
    optimizer = torch.optim.AdamW(net(0).parameters())
    state = optimizer.state_dict()
    tree = {
        "state_dict": mixed,
        "optimizer_states": [state],
        "lr_schedulers": [],
        "loops": {"fit_loop": {}},
        "epoch": 1,
    }
    path = save(tmp_path, MLP, tree)
    report = netgrow_cli.expand(path, layer="a", add=3, prefix="model.", probes=32)
    assert [one["key"] for one in report.as_json()["also"]] == ["state_dict.ema_model.module"]
    new = torch.load(report.output, weights_only=True)["state_dict"]
    assert list(new) == list(mixed) and int(new["ema_model.n_averaged"]) == 3
    for prefix in ("model.", "ema_model.module."):
        assert new[prefix + "a.weight"].shape == (9, 4)
        same(outputs(mixed, prefix), outputs(new, prefix))
    with pytest.raises(CheckpointError, match="does not fit"):
        netgrow_cli.expand(
            save(tmp_path / "no", MLP, {**mixed, "head.c": torch.zeros(3, 3)}), layer="a", add=1, prefix="model."
        )


# -- several optimizers -------------------------------------------------------------------------------


def optimizer_of(*modules: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([p for module in modules for p in module.parameters()], lr=1e-2)
    for module in modules:
        module(inputs(8, 4).float()).square().mean().backward()
    optimizer.step()
    return optimizer


def first_moments(state: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(entries["exp_avg"].shape) for entries in state["state"].values()]


OLD, NEW = [(6, 4), (6,), (3, 6), (3,)], [(9, 4), (9,), (3, 9), (3,)]


def test_each_optimizer_is_matched_with_its_network(tmp_path: Path) -> None:
    """By shapes where they differ, by where it lies or what it is called where they do not."""
    actor, critic, twin = net(0), Mlp(6, 1), net(1)
    states = {"actor": actor.state_dict(), "critic": critic.state_dict()}
    gan = {**states, "opt_a": optimizer_of(actor).state_dict(), "opt_b": optimizer_of(critic).state_dict()}
    new = torch.load(netgrow_cli.expand(save(tmp_path / "gan", MLP, gan), layer="a", add=3, key="actor").output)
    assert first_moments(new["opt_a"]) == NEW and new["opt_b"]["state"][2]["exp_avg"].shape == (1, 6)
    named = {
        "q1": actor.state_dict(),
        "q2": twin.state_dict(),
        "q2_optimizer": optimizer_of(twin).state_dict(),
        "q1_optimizer": optimizer_of(actor).state_dict(),
    }
    new = torch.load(netgrow_cli.expand(save(tmp_path / "named", MLP, named), layer="a", add=3, key="q1").output)
    assert first_moments(new["q1_optimizer"]) == NEW and first_moments(new["q2_optimizer"]) == OLD
    nested = {
        "one": {"net": actor.state_dict(), "opt": optimizer_of(actor).state_dict()},
        "two": {"net": twin.state_dict(), "opt": optimizer_of(twin).state_dict()},
    }
    new = torch.load(netgrow_cli.expand(save(tmp_path / "nested", MLP, nested), layer="a", add=3, key="two.net").output)
    assert first_moments(new["one"]["opt"]) == OLD and first_moments(new["two"]["opt"]) == NEW


def test_which_of_two_alike_is_asked(tmp_path: Path) -> None:
    """Where nothing tells, it is refused, unless both readings come to the same."""
    one, two = net(0), net(1)
    tree = {"q1": one.state_dict(), "q2": two.state_dict(), "optimizers": [optimizer_of(one).state_dict()]}
    path = save(tmp_path / "a", MLP, tree)
    with pytest.raises(CheckpointError, match=r"can be q1.a.weight or q2.a.weight; pass --drop-optimizer"):
        netgrow_cli.expand(path, layer="a", add=3, key="q1")
    new = torch.load(netgrow_cli.expand(path, layer="a", add=3, key="q1", also="q2").output)
    assert first_moments(new["optimizers"][0]) == NEW


def test_one_optimizer_of_two_networks(tmp_path: Path) -> None:
    actor, critic = net(0), Mlp(6, 1)
    both = optimizer_of(critic, actor).state_dict()
    tree = {"actor": actor.state_dict(), "critic": critic.state_dict(), "optimizer": both}
    new = torch.load(netgrow_cli.expand(save(tmp_path, MLP, tree), layer="a", add=3, key="actor").output)
    assert first_moments(new["optimizer"]) == [(6, 4), (6,), (1, 6), (1,), *NEW]


def test_groups_of_the_same_sizes_may_be_in_any_order(tmp_path: Path) -> None:
    """Two layers of one shape, a group each: which is first nothing says, and only one of them changes."""
    wide = spec_of("x: [batch, 4]", "c", a="op: linear, from: x", b="op: linear, from: a", c="op: linear, from: b")
    module = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"})
    optimizer = torch.optim.AdamW([{"params": list(module[name].parameters())} for name in "cba"], lr=1e-2)
    module["c"](module["b"](module["a"](torch.randn(3, 4)))).sum().backward()
    optimizer.step()
    path = save(tmp_path, wide, {"model": module.state_dict(), "optimizer": optimizer.state_dict()})
    with pytest.raises(CheckpointError, match=r"can be model\.a\.weight or "):
        netgrow_cli.expand(path, layer="a", add=3)


@pytest.mark.parametrize("container", (list, tuple))
def test_optimizers_in_a_sequence_can_be_dropped(tmp_path: Path, container: Any) -> None:
    one = net(0)
    tree = {"model": one.state_dict(), "optimizers": container([optimizer_of(one).state_dict()] * 2)}
    report = netgrow_cli.expand(save(tmp_path, MLP, tree), layer="a", add=3, drop_optimizer=True)
    left = torch.load(report.output, weights_only=True)["optimizers"]
    assert left == ([] if container is list else (None, None))


# -- all of it goes on ----------------------------------------------------------------------------------


class Lit(nn.Module):
    """As Lightning keeps it: the network under a name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "expand": ("expand", {"layer": ["stem", "fc"], "add": 2}),
    "split": ("split", {"layer": ["stem", "fc"], "top": 2}),
    "prune": ("prune", {"layer": "fc", "dead": True}),
    "recycle": ("recycle", {"layer": "fc"}),
    "merge": ("prune", {"layer": "fc", "duplicates": True}),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("layout", ("plain", "lightning"))
def test_everything_loads_and_steps(tmp_path: Path, name: str, layout: str) -> None:
    """Model, average, optimizer and schedule go into real torch objects, which train on."""
    torch.manual_seed(0)
    model = Conv()
    with torch.no_grad():
        model.fc.weight[1], model.fc.bias[1] = 0.0, -1.0
        model.fc.weight[5], model.fc.bias[5] = model.fc.weight[4], model.fc.bias[4]
        model.out.weight[:, 5] = model.out.weight[:, 4]
    held = Lit(model) if layout == "lightning" else model
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def resume(
        held: nn.Module, average: nn.Module, start: int, steps: int, tree: Any = None
    ) -> tuple[list[float], Any]:
        optimizer = torch.optim.AdamW(held.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        if tree is not None:
            optimizer.load_state_dict(tree["optimizer_states"][0])
            schedule.load_state_dict(tree["lr_schedulers"][0])
        losses = []
        for number in range(start, start + steps):
            x = inputs(32, 16, seed=number).float()
            loss = (held(x) - torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin(), x[:, 3]], 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(held.model if isinstance(held, Lit) else held)
            losses.append(float(loss.detach()))
        return losses, {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()]}

    _, states = resume(held, average, 0, 25)
    tree = {"state_dict": held.state_dict(), "ema": average.state_dict(), "global_step": 25, "loops": {}, **states}
    tree = copy.deepcopy(tree)
    command, settings = COMMANDS[name]
    path = save(tmp_path, CONV, tree)
    prefix = "model." if layout == "lightning" else None
    report = getattr(netgrow_cli, command)(path, prefix=prefix, **settings)
    assert report.plan.changes, "nothing was changed, so nothing is shown"
    new = torch.load(report.output, weights_only=True)
    plain, _ = resume(held, average, 25, 20, tree)
    inner = netgrow_cli.fit(copy.deepcopy(model), report.output, prefix=prefix).train()
    changed = Lit(inner) if layout == "lightning" else inner
    changed.load_state_dict(new["state_dict"])
    averaged = AveragedModel(inner, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.load_state_dict(new["ema"])
    losses, _ = resume(changed, averaged, 25, 20, new)
    assert losses[0] == pytest.approx(plain[0], rel=1e-4)
    assert max(losses) <= 1.5 * max(plain)
    assert int(averaged.n_averaged) == 45
