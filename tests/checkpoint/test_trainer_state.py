"""`optimizer.pt` beside a Hugging Face model: ids told without the order of the safetensors file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netgrow_cli
from netgrow_cli.checkpoint import open_checkpoint
from netgrow_cli.checkpoint.optimizer import OptimizerState, find_optimizers
from netgrow_cli.checkpoint.trainer_state import match_trainer
from netgrow_cli.errors import CheckpointError
from netgrow_cli.jobs.optimizers import Owner, optimizer_file
from netgrow_cli.surgery.change import expand
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.topology.discover import find_spec
from netgrow_cli.topology.solve import solve

transformers = pytest.importorskip("transformers")


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    return transformers.BertForMaskedLM(config)


def decayed(model: nn.Module) -> set[str]:
    """The Trainer's own answer, which netgrow's must be."""
    return set(transformers.Trainer.get_decay_parameter_names(None, model))


def trainer_groups(model: nn.Module) -> list[list[str]]:
    names, decay = [name for name, _ in model.named_parameters()], decayed(model)
    return [[name for name in names if name in decay], [name for name in names if name not in decay]]


def saved(folder: Path, model: nn.Module, groups: list[list[str]], steps: int = 2) -> OptimizerState:
    """A folder as the Trainer leaves it."""
    by_name = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": [by_name[name] for name in group]} for group in groups], lr=1e-3)
    for _ in range(steps):
        ids = torch.randint(0, 64, (2, 6))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (found,) = find_optimizers(torch.load(folder / "optimizer.pt", weights_only=True))
    return found


def tensors_of(folder: Path) -> Any:
    with open_checkpoint(folder / "model.safetensors") as checkpoint:
        return dict(checkpoint.tensors)


@pytest.mark.parametrize("make", (llama, bert))
@pytest.mark.parametrize("grouped", (True, False))
def test_the_trainers_groups(tmp_path: Path, make: Callable[[], nn.Module], grouped: bool) -> None:
    model = make()
    names = [name for name, _ in model.named_parameters()]
    groups = trainer_groups(model) if grouped else [names]
    found = saved(tmp_path, model, groups)
    tensors = tensors_of(tmp_path)
    assert list(tensors) != names, "alphabetical, so that its order is of no use"
    expected = dict(enumerate(name for group in groups for name in group))
    assert match_trainer(found, tensors, tmp_path) == expected


def test_names_and_lone_sizes_need_no_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    found = saved(tmp_path, model, trainer_groups(model))
    tensors = tensors_of(tmp_path)
    expected = match_trainer(found, tensors, tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match="needs transformers installed; pass --drop-optimizer"):
        match_trainer(found, tensors, tmp_path)
    named = [{**g, "param_names": [expected[identity] for identity in g["params"]]} for g in found.groups]
    again = OptimizerState((), "adam", found.state, named)
    assert match_trainer(again, tensors, tmp_path) == expected
    lone = {name: info for name, info in tensors.items() if [i.shape for i in tensors.values()].count(info.shape) == 1}
    ids = [identity for identity, name in expected.items() if name in lone]
    few = OptimizerState((), "adam", {i: found.state[i] for i in ids}, [{"params": ids}])
    assert ids and match_trainer(few, tensors, tmp_path) == {i: expected[i] for i in ids}


def test_what_cannot_be_told(tmp_path: Path) -> None:
    """Groups that nobody makes, code that is not there: refused, never guessed from the file's order."""
    model = llama()
    names = [name for name, _ in model.named_parameters()]
    found = saved(tmp_path, model, [names[:5], names[5:]])
    tensors = tensors_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"its groups of 5, 15 parameters are none.*--drop-optimizer"):
        match_trainer(found, tensors, tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text("utf-8")
    config.write_text(text.replace("LlamaForCausalLM", "MyLlama"), "utf-8")
    with pytest.raises(CheckpointError, match="transformers has no MyLlama"):
        match_trainer(found, tensors, tmp_path)
    config.write_text("{}", "utf-8")
    with pytest.raises(CheckpointError, match="transformers cannot build the model"):
        match_trainer(found, tensors, tmp_path)


def test_an_edited_optimizer_file_loads_and_steps(tmp_path: Path) -> None:
    """The MLPs of a Llama wider by 8, weights and moments, in real transformers and torch."""
    model = llama()
    found = saved(tmp_path, model, trainer_groups(model))
    weights = tmp_path / "model.safetensors"
    with open_checkpoint(weights) as checkpoint:
        topology = solve(find_spec(checkpoint, weights, None).graph(checkpoint), checkpoint.tensors)
        wide = [w for w in topology.widths.values() if w.frozen is None and w.size == 32]
        changes = [expand(width.width.id, width.size, 8) for width in wide]
        plan = make_plan(topology, checkpoint.tensors, changes)
        owner = Owner(
            (),
            checkpoint.tensors,
            plan.edits,
            checkpoint.read,
            match=lambda optimizer: match_trainer(optimizer, checkpoint.tensors, tmp_path),
        )
        made = optimizer_file(tmp_path / "optimizer.pt", [owner], 0)
        made.write(tmp_path / "new.pt")
        (followed,) = made.followed
    assert len(changes) == 2 and followed.changed == 6
    model.config.intermediate_size = 40
    grown = transformers.LlamaForCausalLM(model.config)
    by_name, groups = dict(grown.named_parameters()), trainer_groups(grown)
    optimizer = torch.optim.AdamW([{"params": [by_name[name] for name in group]} for group in groups])
    state = torch.load(tmp_path / "new.pt", weights_only=True)
    assert [group["param_names"] for group in state["param_groups"]] == groups
    optimizer.load_state_dict(state)
    old = dict(enumerate(name for group in groups for name in group))
    for identity, name in old.items():
        new, before = state["state"][identity]["exp_avg_sq"], found.state[identity]["exp_avg_sq"]
        kept = new[tuple(slice(0, size) for size in before.shape)]
        assert new.shape == by_name[name].shape and torch.equal(kept, before)
    ids = torch.randint(0, 64, (2, 6))
    grown(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("add", (8, 0))
def test_a_folder_of_the_trainer_changes_with_its_optimizer(tmp_path: Path, add: int) -> None:
    """By the command's own way: the new folder loads, and the optimizer steps on."""
    model, folder = llama(), tmp_path / "checkpoint"
    found = saved(folder, model, trainer_groups(model))
    what: dict[str, Any] = {"layer": "model.layers.*.mlp.up_proj", "spec": None}
    report = (
        netgrow_cli.expand(folder, add=add, **what)
        if add
        else netgrow_cli.split(folder, units=[3, 5], noise=0.2, **what)
    )
    assert [(one.label.split(":")[0], one.changed) for one in report.state.optimizers] == [("optimizer.pt", 6)]
    grown = transformers.AutoModelForCausalLM.from_pretrained(report.output)
    by_name, groups = dict(grown.named_parameters()), trainer_groups(grown)
    optimizer = torch.optim.AdamW([{"params": [by_name[name] for name in group]} for group in groups])
    optimizer.load_state_dict(torch.load(report.output / "optimizer.pt", weights_only=True))
    for parameter, entries in optimizer.state.items():
        assert entries["exp_avg"].shape == entries["exp_avg_sq"].shape == parameter.shape
        assert entries["step"] == found.state[0]["step"]
    ids = torch.randint(0, 64, (2, 6))
    grown(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    (folder / "config.json").write_text("{}")  # without which nobody knows the order
    with pytest.raises(CheckpointError, match="--drop-optimizer"):
        netgrow_cli.expand(folder, add=2, spec=report.output / "netgrow.yaml", layer=what["layer"], force=True)
