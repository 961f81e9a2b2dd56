"""Optimizer states of real optimizers, matched with the parameters they belong to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netgrow_cli.checkpoint import TensorInfo, open_checkpoint
from netgrow_cli.checkpoint.optimizer import OptimizerState, find_optimizers, match_parameters, moments
from netgrow_cli.errors import CheckpointError


def model_of(sizes: Sequence[int]) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(sizes):
        layers += [nn.Linear(width, following), nn.BatchNorm1d(following)]
    return nn.Sequential(*layers)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, width: int) -> None:
    model(torch.randn(8, width)).square().sum().backward()
    optimizer.step()


def saved(tmp_path: Path, model: nn.Module, optimizer: Any, prefix: str = "") -> tuple[OptimizerState, Any]:
    """Through a file: the state as it is found, and the tensors' infos."""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        (found,) = find_optimizers(checkpoint.tree())
        return found, checkpoint.tensors


def truth(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """What torch itself means by each number."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    given = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {number: names[id(parameter)] for number, parameter in enumerate(given)}


OPTIMIZERS: dict[str, tuple[Any, str, set[str]]] = {
    "AdamW": (lambda p: torch.optim.AdamW(p), "adam", {"exp_avg", "exp_avg_sq"}),
    "AMSGrad": (
        lambda p: torch.optim.Adam(p, amsgrad=True),
        "adam",
        {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    ),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "sgd", {"momentum_buffer"}),
    "plain SGD": (lambda p: torch.optim.SGD(p, lr=0.1), "sgd", set()),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, momentum=0.9), "rmsprop", {"square_avg", "momentum_buffer"}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_model_order(tmp_path: Path, name: str) -> None:
    make, kind, kept = OPTIMIZERS[name]
    model = model_of([5, 7, 7, 3])
    optimizer = make(model.parameters())
    step(model, optimizer, 5)
    found, tensors = saved(tmp_path, model, optimizer)
    assert (found.kind, found.path, found.label) == (kind, ("optimizer",), "optimizer")
    assert found.ids == list(range(12))
    matched = match_parameters(found, tensors)
    assert matched == truth(model, optimizer)
    for identity, entries in found.state.items():
        if entries.get("momentum_buffer", 0) is not None:
            assert set(moments(entries, tensors[matched[identity]].shape)) == kept


def test_groups_in_another_order_than_the_state_dict(tmp_path: Path) -> None:
    """Weights with decay in one group, all others in a second: no size is in both."""
    model = model_of([5, 7, 7, 3])
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": decayed, "weight_decay": 0.1}])
    step(model, optimizer, 5)
    found, tensors = saved(tmp_path, model, optimizer)
    assert match_parameters(found, tensors) == truth(model, optimizer)


def test_distinct_sizes_match_in_any_order(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 2))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW([{"params": [p]} for p in (parameters[i] for i in (3, 0, 5, 2, 1, 4))])
    step(model, optimizer, 3)
    found, tensors = saved(tmp_path, model, optimizer)
    assert match_parameters(found, tensors) == truth(model, optimizer)


def test_a_part_of_the_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer, 3)
    found, tensors = saved(tmp_path, model, optimizer)
    assert match_parameters(found, tensors) == {0: "1.weight", 1: "1.bias"}


def test_frozen_parameters_have_no_state(tmp_path: Path) -> None:
    model = model_of([5, 7, 7, 3])
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, 5)
    found, tensors = saved(tmp_path, model, optimizer)
    assert set(found.ids) - set(found.state) == {4, 5}
    assert match_parameters(found, tensors) == truth(model, optimizer)


def test_names_decide_where_the_optimizer_has_them(tmp_path: Path) -> None:
    """All of one size and in reverse: nothing but the names could tell."""
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(3)])
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": [named[2], named[0]]}, {"params": [named[1]]}])
    step(model, optimizer, 4)
    found, tensors = saved(tmp_path, model, optimizer)
    assert match_parameters(found, tensors) == {0: "2.weight", 1: "0.weight", 2: "1.weight"}
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["param_names"] = ["_orig_mod.module." + name for name in group["param_names"]]
    (wrapped,) = find_optimizers({"o": state})
    assert match_parameters(wrapped, tensors) == {0: "2.weight", 1: "0.weight", 2: "1.weight"}


def test_states_that_are_numbered_by_name(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, 3)
    state = optimizer.state_dict()
    by_name = {
        "state": {"bias": state["state"][1], "weight": state["state"][0]},
        "param_groups": [{"params": ["bias", "weight"]}],
    }
    (found,) = find_optimizers(by_name)
    infos = {"weight": TensorInfo("weight", (4, 3), "F32"), "bias": TensorInfo("bias", (4,), "F32")}
    assert found.path == () and found.label == "the file itself"
    assert match_parameters(found, infos) == {"bias": "bias", "weight": "weight"}


def test_tied_and_wrapped_models(tmp_path: Path) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "mid": nn.Linear(4, 4), "head": nn.Linear(4, 6)})
    model["head"].weight = model["embed"].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model["head"](model["mid"](model["embed"](torch.tensor([1, 2])))).sum().backward()
    optimizer.step()
    found, tensors = saved(tmp_path, model, optimizer, prefix="module.")
    assert tensors["head.weight"].tied_to == "embed.weight"
    assert match_parameters(found, tensors) == {
        0: "embed.weight",
        1: "mid.weight",
        2: "mid.bias",
        3: "head.bias",
    }


def ambiguous(optimizer: OptimizerState, tensors: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        match_parameters(optimizer, tensors)
    assert "--drop-optimizer" in str(caught.value) and "optimizer state at optimizer" in str(caught.value)


def test_what_is_ambiguous_is_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    first, second = list(model[2].parameters()), [*model[1].parameters(), *model[0].parameters()]
    optimizer = torch.optim.AdamW([{"params": first + second[:2]}, {"params": second[2:]}])
    step(model, optimizer, 4)
    found, tensors = saved(tmp_path, model, optimizer)
    ambiguous(found, tensors, r"2 parameters of shape \[4, 4\] in several groups, which can be 0\.weight, 1\.weight")
    part = torch.optim.AdamW(model[1].parameters())
    step(model, part, 4)
    found, tensors = saved(tmp_path, model, part)
    ambiguous(found, tensors, r"1 parameter of shape \[4, 4\], the model has 0\.weight, 1\.weight")
    other = nn.Linear(3, 3)
    foreign = torch.optim.AdamW(other.parameters())
    step(other, foreign, 3)
    found, tensors = saved(tmp_path, model, foreign)
    ambiguous(found, tensors, r"1 parameter of shape \[3, 3\], the model has none")


def test_names_or_shapes_that_do_not_fit_are_said(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.named_parameters())
    step(model, optimizer, 3)
    found, tensors = saved(tmp_path, model, optimizer)
    ambiguous(found, {"bias": tensors["bias"]}, "a parameter 'weight', and the model has no such tensor")
    wide = {**tensors, "weight": TensorInfo("weight", (8, 3), "F32")}
    ambiguous(found, wide, r"state of 'weight' has the shape \[4, 3\], and it is \[8, 3\] in the model")


def test_optimizers_are_found_wherever_they_are() -> None:
    state = torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict()
    tree = {"model": {"w": torch.zeros(1)}, "optimizer_states": [state, state], "deep": {"a": {"b": state}}}
    paths = [found.path for found in find_optimizers(tree)]
    assert paths == [("optimizer_states", 0), ("optimizer_states", 1), ("deep", "a", "b")]
    assert find_optimizers(None) == []
    assert find_optimizers({"state": {}, "param_groups": [1]}) == []


def test_before_the_first_step_all_ids_match_by_order(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    found, tensors = saved(tmp_path, model, torch.optim.AdamW(model.parameters()))
    assert found.kind == "adam"
    assert match_parameters(found, tensors) == {0: "weight", 1: "bias"}
    assert match_parameters(found, {}) == {}
