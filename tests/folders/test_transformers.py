"""Edited folders in transformers: they load by their own config.json and generate the same tokens.

Models are made from small configurations with random numbers; nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import netgrow_cli
from netgrow_cli.jobs.job import Options, Report
from netgrow_cli.jobs.recipe import apply_recipe, read_recipe

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
LLAMA = {**TOKENS, **SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
BESIDE = {
    "README.md": b"# A model\r\n",
    "tokenizer.json": b"{}",
    "special_tokens_map.json": b'{"pad_token": "\\u00e9"}',
    ".gitattributes": b"*.bin lfs\n",
    "1_Pooling/config.json": b"{ }",
    "scheduler.pt": bytes(range(256)),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A model type, and widths in all of its layers: the MLP, heads, and more that its configuration can follow."""

    model_type: str
    settings: Mapping[str, Any]
    mlp: str
    recipe: str
    auto: str = "AutoModelForCausalLM"

    def __str__(self) -> str:
        return self.model_type


HEADS = "[model.layers.0.self_attn.q_proj.kv_heads, model.layers.1.self_attn.q_proj.kv_heads]"
LLAMA_RECIPE = f"  - expand: {{width: {HEADS}, add: 2}}\n  - expand: {{width: model.embed_tokens, add: 8}}\n"
GPT2_HEADS = "['transformer.h.0.attn.c_attn[0:32].0', 'transformer.h.1.attn.c_attn[0:32].0']"
FAMILIES = [
    Family("llama", {**LLAMA, "tie_word_embeddings": True}, "model.layers.*.mlp.gate_proj", LLAMA_RECIPE),
    Family("qwen2", {**LLAMA, "tie_word_embeddings": False}, "model.layers.*.mlp.gate_proj", LLAMA_RECIPE),
    Family(
        "gpt2",
        {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "transformer.h.*.mlp.c_fc",
        f"  - expand: {{width: {GPT2_HEADS}, add: 1}}\n  - expand: {{width: transformer.wte, add: 8}}\n",
    ),
    Family(
        "bert",
        {**TOKENS, **SIZES, "max_position_embeddings": 64},
        "bert.encoder.layer.*.intermediate.dense",
        "  - split: {layer: 'bert.encoder.layer.*.intermediate.dense', units: [0, 5]}\n",
        auto="AutoModelForMaskedLM",
    ),
]


def model_of(family: Family, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(family.model_type, **family.settings)
    model = getattr(transformers, family.auto).from_config(settings).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3 + (tensor.dim() == 1 and name.endswith("weight")))
    return model.to(dtype)


def saved(family: Family, folder: Path, shard: str = "20KB", dtype: torch.dtype = torch.float32) -> Path:
    model_of(family, dtype).save_pretrained(folder, max_shard_size=shard)
    for name, data in BESIDE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def answer(family: Family, folder: Path) -> torch.Tensor:
    """Greedy tokens, or the logits of masked ones; everything in the folder must find its place."""
    load = getattr(transformers, family.auto).from_pretrained
    model, info = load(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    prompt = torch.randint(3, 64, (12, 7), generator=torch.Generator().manual_seed(1))
    model.eval()
    with torch.no_grad():
        if "Masked" in family.auto:
            return model(prompt, attention_mask=torch.ones_like(prompt)).logits
        options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
        tokens: torch.Tensor = model.generate(prompt, **options)
    assert len(set(tokens[:, 7:].flatten().tolist())) > 5  # tokens that say nothing would always be the same
    return tokens


def same(family: Family, old: Path, new: Path) -> None:
    before, after = answer(family, old), answer(family, new)
    assert torch.allclose(before, after, rtol=0, atol=1e-4 * float(before.abs().max())) and before.shape == after.shape
    assert torch.equal(before.argmax(-1), after.argmax(-1))
    if before.dtype == torch.int64:
        assert torch.equal(before, after)


def others_are_the_same(old: Path, new: Path) -> None:
    """Besides the weights, config.json and netgrow's own files nothing differs."""
    weights = re.compile(r".*\.safetensors(\.index\.json)?|.*\.bin(\.index\.json)?|config\.json|netgrow\.(yaml|json)")
    found = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (old, new)
    ]
    kept = [{name: data for name, data in files.items() if not weights.fullmatch(name)} for files in found]
    assert kept[0] == kept[1] and set(BESIDE) <= set(kept[0])


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


def every_tensor_once(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors, each in the shard that the index says, with the metadata of transformers."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {file: load_file(folder / file) for file in shards(folder)}
    assert index["weight_map"] == {name: file for file, state in found.items() for name in state}
    tensors = {name: tensor for state in found.values() for name, tensor in state.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    return tensors


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_wider_mlp(tmp_path: Path, family: Family, dtype: torch.dtype) -> None:
    folder = saved(family, tmp_path / "Llama-3.2-1B", dtype=dtype)
    assert len(shards(folder)) >= 2
    old = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    report = netgrow_cli.expand(f"{folder}/", layer=family.mlp, add=8, probes=4)
    assert report.output == tmp_path / "Llama-3.2-1B.expanded"
    assert report.config is not None and len(report.config.changes) == 1
    same(family, folder, report.output)
    others_are_the_same(folder, report.output)
    assert shards(report.output) == shards(folder)
    assert every_tensor_once(report.output).keys() == every_tensor_once(folder).keys()
    for file in shards(folder):  # bytes as the library writes them
        save_file(load_file(report.output / file), tmp_path / "library", metadata={"format": "pt"})
        assert (tmp_path / "library").read_bytes() == (report.output / file).read_bytes()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == old


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_split_and_prune_come_back(tmp_path: Path, family: Family) -> None:
    folder = saved(family, tmp_path / "m")
    wide = netgrow_cli.split(folder, layer=family.mlp, units=[1, 4, 7], probes=4).output
    assert wide == tmp_path / "m.split"
    same(family, folder, wide)
    again = netgrow_cli.prune(wide, layer=family.mlp, duplicates=True, probes=4).output
    assert again == tmp_path / "m.split.pruned"
    same(family, folder, again)
    others_are_the_same(folder, again)
    old, new = every_tensor_once(folder), every_tensor_once(again)
    assert {name: tensor.shape for name, tensor in new.items()} == {name: old[name].shape for name in new}
    assert json.loads((again / "config.json").read_text()) == {
        **json.loads((folder / "config.json").read_text()),
        **({"n_inner": 128} if family.model_type == "gpt2" else {}),
    }


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_heads_and_the_stream_by_a_recipe(tmp_path: Path, family: Family) -> None:
    folder = saved(family, tmp_path / "m")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("netgrow: 1\nchanges:\n" + family.recipe)
    output, reports = apply_recipe(folder, read_recipe(recipe), Options(probes=4))
    assert output == tmp_path / "m.edited" and not reports[-1].config.warnings
    same(family, folder, output)
    others_are_the_same(folder, output)
    assert {path.name for path in tmp_path.iterdir()} == {"m", "m.edited", "recipe.yaml"}


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("size", [30_000, 10**9])
def test_shards_of_another_size(tmp_path: Path, family: Family, size: int) -> None:
    folder = saved(family, tmp_path / "m")
    output = netgrow_cli.expand(folder, layer=family.mlp, add=8, shard_size=size, verify=False).output
    same(family, folder, output)
    if size == 10**9:
        assert shards(output) == {"model.safetensors"} and not list(output.glob("*.index.json"))
    else:
        assert len(shards(output)) > 1 and all(re.search(r"-of-0000\d\.", name) for name in shards(output))
        every_tensor_once(output)
    # A result is a folder like any other, with the spec and the record in it.
    equal, folded = netgrow_cli.verify(folder, output, probes=4)
    assert equal.equal and folded is not None and folded.whole


def in_torch_shards(family: Family, folder: Path) -> Path:
    """What transformers wrote before safetensors: torch files, tied tensors under both names."""
    saved(family, folder)
    state = {name: tensor for file in sorted(shards(folder)) for name, tensor in load_file(folder / file).items()}
    names = sorted(state)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": {}}
    for number, half in enumerate(halves, 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        part = {name: state[name] for name in half}
        if "model.embed_tokens.weight" in part:
            part["lm_head.weight"] = part["model.embed_tokens.weight"]
        torch.save(part, folder / file)
        index["weight_map"] |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    return folder


def test_torch_shards_with_a_tied_head(tmp_path: Path) -> None:
    family = FAMILIES[0]
    folder = in_torch_shards(family, tmp_path / "m")
    report = netgrow_cli.expand(folder, layer=family.mlp, add=8, probes=4)
    same(family, folder, report.output)
    report = netgrow_cli.expand(folder, width="model.embed_tokens", add=8, output=tmp_path / "wide", probes=4)
    same(family, folder, tmp_path / "wide")
    assert sorted(path.name for path in (tmp_path / "wide").glob("*.bin")) == sorted(
        path.name for path in folder.glob("*.bin")
    )


def test_a_tied_head_that_is_there_twice(tmp_path: Path) -> None:
    """Old files hold both; they are one tensor while they are equal, and stay so."""
    family = FAMILIES[0]
    folder = saved(family, tmp_path / "m", shard="1GB")
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    output = netgrow_cli.expand(folder, width="model.embed_tokens", add=8, probes=4).output
    same(family, folder, output)
    new = load_file(output / "model.safetensors")
    assert torch.equal(new["lm_head.weight"], new["model.embed_tokens.weight"]) and new["lm_head.weight"].shape[1] == 40


EDITS: list[Callable[[Path, Family], Report]] = [
    lambda folder, family: netgrow_cli.expand(folder, layer=family.mlp, add=8, verify=False, force=True, output=folder),
    lambda folder, family: netgrow_cli.split(folder, layer=family.mlp, units=[3], probes=4, force=True, output=folder),
]


@pytest.mark.parametrize("edit", EDITS, ids=["expand", "split"])
def test_in_place(tmp_path: Path, edit: Callable[[Path, Family], Report]) -> None:
    family = FAMILIES[0]
    folder = saved(family, tmp_path / "m")
    before = answer(family, folder)
    edit(folder, family)
    assert torch.equal(before, answer(family, folder))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("family", FAMILIES[:2], ids=["tied", "untied"])
def test_fit_takes_a_folder(tmp_path: Path, family: Family) -> None:
    folder = saved(family, tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    wide = netgrow_cli.expand(index, width="model.embed_tokens", add=8, probes=4, shard_size="1GB").output
    model = netgrow_cli.fit(model_of(family), wide)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == family.settings["tie_word_embeddings"] and model.lm_head.weight.shape == (64, 40)
    tokens = torch.randint(0, 64, (2, 9))
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, model_of(family)(tokens).logits, atol=1e-4)
