"""Shipped specs against transformers itself: the same outputs, the same widths as a trace, and results that load.

Models are made from small configurations with random numbers; nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import netgrow_cli
from netgrow_cli.errors import Refused, SpecError
from netgrow_cli.jobs.job import Job, Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.surgery.change import expand, split
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.surgery.select import size_class
from netgrow_cli.topology.layout import leaves, occurrences
from netgrow_cli.topology.solve import Topology
from netgrow_cli.topology.trace.inputs import parse_input
from netgrow_cli.topology.trace.source import trace_source

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

EXACT, SINGLE = 1e-12, 1e-6
"""What is allowed where a model computes in its own dtype throughout, and where parts are in float32."""

TOKENS = {
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_hidden_layers": 2,
    "use_cache": False,
}
OLD = {**TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
LLAMA = {**OLD, "num_key_value_heads": 2}
GEMMA = {**LLAMA, "head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": 3}
GPT2 = {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 32}
VIT = {**OLD, "image_size": [16, 24], "patch_size": 8}


Edits = tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """A model type, its settings, and edits that its configuration can follow.

    free: how many widths may change at least. edits: in each, (widths, units to add) one after another.
    """

    model_type: str
    architecture: str
    settings: Mapping[str, Any]
    mlp: str
    free: int = 9
    exact: bool = False
    edits: tuple[Edits, ...] = ()
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.model_type

    def write(self, folder: Path, **changes: Any) -> Path:
        folder.mkdir(exist_ok=True)
        stated = {"model_type": self.model_type, "architectures": [self.architecture], **self.settings, **changes}
        (folder / "config.json").write_text(json.dumps(stated), encoding="utf-8")
        return folder


def model_of(folder: Path, architecture: str, config: str = "config.json") -> Any:
    """The model with all numbers at random, in float64, by its configuration alone."""
    torch.manual_seed(0)
    settings = transformers.AutoConfig.from_pretrained(str(folder / config))
    model = getattr(transformers, architecture)._from_config(settings).double().eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    return model


LLAMA_EDITS = ((("model.layers.{i}.self_attn.q_proj.kv_heads", 2),), (("model.embed_tokens", 8),))
FAMILIES = [
    Family("llama", "LlamaForCausalLM", LLAMA, "model.layers.{i}.mlp.gate_proj", edits=LLAMA_EDITS),
    Family(
        "mistral",
        "MistralForCausalLM",
        {**LLAMA, "sliding_window": 3},
        "model.layers.{i}.mlp.gate_proj",
        edits=LLAMA_EDITS,
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "model.layers.{i}.mlp.gate_proj",
        edits=LLAMA_EDITS,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        {**LLAMA, "head_dim": 12},
        "model.layers.{i}.mlp.gate_proj",
        edits=LLAMA_EDITS[:1],
    ),
    Family("gemma2", "Gemma2ForCausalLM", GEMMA, "model.layers.{i}.mlp.gate_proj", edits=LLAMA_EDITS[:1]),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**GEMMA, "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 20.0},
        "model.layers.{i}.mlp.gate_proj",
        edits=LLAMA_EDITS[:1],
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        {**LLAMA, "partial_rotary_factor": 0.5},
        "model.layers.{i}.mlp.gate_up_proj[0:48]",
        free=11,
        edits=((("model.layers.{i}.self_attn.qkv_proj[0:32].kv_heads", 2),), (("model.embed_tokens", 8),)),
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        GPT2,
        "transformer.h.{i}.mlp.c_fc",
        exact=True,
        edits=((("transformer.h.{i}.attn.c_attn[0:32].0", 1), ("transformer.wte", 8)),),
    ),
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        OLD,
        "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
        free=5,
        edits=((("gpt_neox.layers.{i}.attention.query_key_value.0", 1), ("gpt_neox.embed_in", 8)),),
    ),
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {**OLD, "use_parallel_residual": False, "rotary_pct": 0.5, "rotary_emb_base": 50},
        "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
        free=5,
        name="gpt_neox one after the other",
    ),
    Family(
        "opt",
        "OPTForCausalLM",
        {**OLD, "ffn_dim": 48, "word_embed_proj_dim": 32},
        "model.decoder.layers.{i}.fc1",
        exact=True,
    ),
    Family(
        "bert",
        "BertForMaskedLM",
        OLD,
        "bert.encoder.layer.{i}.intermediate.dense",
        exact=True,
    ),
    Family(
        "roberta",
        "RobertaForMaskedLM",
        {**OLD, "pad_token_id": 1},
        "roberta.encoder.layer.{i}.intermediate.dense",
        exact=True,
    ),
    Family(
        "vit",
        "ViTForImageClassification",
        VIT,
        "vit.layers.{i}.mlp.fc1",
        exact=True,
        edits=((("vit.layers.{i}.attention.q_proj.0", 1), ("vit.embeddings.patch_embeddings.projection", 8)),),
    ),
]


@dataclasses.dataclass(frozen=True)
class Saved:
    """A model, its folder, and the shipped and the traced network of its checkpoint."""

    family: Family
    model: Any
    folder: Path
    shipped: Job
    traced: Topology

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.pt"

    @property
    def allowed(self) -> float:
        return EXACT if self.family.exact else SINGLE


def inputs_of(model_type: str, time: int = 9) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    if model_type == "vit":
        return {"batch": 3}, {"pixel_values": torch.randn(3, 3, 16, 24, generator=generator).double()}
    return {"batch": 3, "time": time}, {"input_ids": torch.randint(0, 64, (3, time), generator=generator)}


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    family: Family = request.param
    folder = family.write(tmp_path_factory.mktemp("family"))
    model = model_of(folder, family.architecture)
    torch.save(model.state_dict(), folder / "model.pt")
    given = [parse_input("float32[2,3,16,24]")] if family.model_type == "vit" else []
    (folder.parent / "traced.yaml").write_text(trace_source(str(folder), given).text, encoding="utf-8")
    with opened(folder / "model.pt", Options(spec=folder.parent / "traced.yaml")) as job:
        traced = job.topology
    with opened(folder / "model.pt", Options()) as job:
        yield Saved(family, model, folder, job, traced)


def outputs_of(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [value for value in model(**inputs).to_tuple() if isinstance(value, torch.Tensor)]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor], allowed: float) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max() / other.abs().max()) < allowed


def test_it_is_found_by_the_model_type(saved: Saved) -> None:
    assert saved.shipped.found.origin == f"shipped for {saved.family.model_type} (config.json)"
    assert saved.shipped.topology.unclaimed == ()


@pytest.mark.parametrize("time", [1, 2, 9])
def test_the_graph_computes_what_the_model_computes(saved: Saved, time: int) -> None:
    sizes, inputs = inputs_of(saved.family.model_type, time)
    found = saved.shipped.network.outputs(sizes, inputs, torch.float64)
    close(found, outputs_of(saved.model, inputs), saved.allowed)


Place = tuple[str, int, tuple[int, ...]]


def partition(topology: Topology) -> dict[frozenset[Place], int]:
    """Each width that may change, by everything that it indexes: tensors, axes, and which unit each index is."""
    found: dict[int, set[Place]] = {}
    for name, layouts in topology.tensors.items():
        for axis, layout in enumerate(layouts):
            for width in {leaf.id for leaf in leaves(layout)}:
                if topology.widths[width].frozen is None:
                    places = {(name, axis, tuple(labels.tolist())) for labels in occurrences(layout, width)}
                    found.setdefault(width, set()).update(places)
    return {frozenset(places): width for width, places in found.items()}


def test_its_widths_are_those_of_the_trace(saved: Saved) -> None:
    shipped, traced = partition(saved.shipped.topology), partition(saved.traced)
    assert set(shipped) == set(traced)
    assert len(shipped) >= saved.family.free
    for places in shipped:
        sizes = [
            sorted(topology.widths[width].size for width in size_class(topology, index[places]))
            for topology, index in ((saved.shipped.topology, shipped), (saved.traced, traced))
        ]
        assert sizes[0] == sizes[1]


def test_units_may_be_permuted(saved: Saved) -> None:
    job = saved.shipped
    found = certify(job.network, job.probes(4, 0), seed=0, dtype="float64", tolerance=1e-12)
    assert found.equivalence.equal and not found.equivalence.constant, found.culprits


def answer(job: Job, width: int, kind: str) -> str:
    """What a plan says to a change of one width with those whose sizes are tied to it."""
    topology = job.topology
    ids = size_class(topology, width)
    try:
        make_plan(
            topology,
            job.checkpoint.tensors,
            [
                expand(one, topology.widths[one].size, 1)
                if kind == "expand"
                else split(one, topology.widths[one].size, range(topology.widths[one].size), 0.2)
                for one in ids
            ],
        )
    except Refused:
        return "refused"
    return "done"


@pytest.mark.parametrize("kind", ["expand", "split"])
def test_every_width_changes_as_in_the_trace(saved: Saved, kind: str) -> None:
    """But for Gemma's stream, whose scale follows its size: a trace has that as a number that it does not follow."""
    index, traced = partition(saved.shipped.topology), partition(saved.traced)
    other = dataclasses.replace(saved.shipped, topology=saved.traced)
    for places, width in index.items():
        scaled = any(effect.kind == "root_scale" for effect in saved.shipped.topology.widths[width].effects)
        found = answer(saved.shipped, width, kind)
        assert found == ("refused" if scaled else answer(other, traced[places], kind))


def blocks(text: str) -> list[str]:
    return [text.replace("{i}", str(layer)) for layer in range(2)] if "{i}" in text else [text]


def edited(saved: Saved, edits: Edits, folder: Path) -> tuple[Path, Any]:
    """The checkpoint after edits, in another folder with its configuration, and the last report."""
    current = saved.checkpoint
    for number, (widths, count) in enumerate(edits):
        place = folder / f"step{number}"
        place.mkdir()
        output = place / "model.pt"
        report = netgrow_cli.expand(current, width=blocks(widths), add=count, output=output, probes=4)
        assert report.equivalence is not None and report.equivalence.equal
        if not (place / "config.json").exists():
            (place / "config.json").write_text((current.parent / "config.json").read_text(encoding="utf-8"))
        current = output
    return current, report


def loads(saved: Saved, output: Path) -> None:
    """The model that the changed configuration describes takes the result, and computes the same."""
    model = model_of(output.parent, saved.family.architecture)
    model.load_state_dict(torch.load(output, weights_only=True), strict=True)
    _, inputs = inputs_of(saved.family.model_type)
    close(outputs_of(model, inputs), outputs_of(saved.model, inputs), saved.allowed)


def test_wider_mlps_load_by_the_changed_configuration(saved: Saved, tmp_path: Path) -> None:
    output, report = edited(saved, ((saved.family.mlp, 16),), tmp_path)
    assert [(change.before, change.after) for change in report.config.changes] == [(48, 64)]
    assert report.config.whole
    loads(saved, output)


def test_other_widths_load_by_the_changed_configuration(saved: Saved, tmp_path: Path) -> None:
    for number, edits in enumerate(saved.family.edits):
        folder = tmp_path / str(number)
        folder.mkdir()
        output, report = edited(saved, edits, folder)
        assert report.config.whole and report.config.changes, report.config.warnings
        loads(saved, output)


# -- configurations that say more, or what is not covered ----------------------------------------------


def write(folder: Path, model_type: str, architecture: str, settings: Mapping[str, Any]) -> Any:
    """A folder with the configuration and the weights of a model."""
    Family(model_type, architecture, settings, "").write(folder)
    model = model_of(folder, architecture)
    torch.save(model.state_dict(), folder / "model.pt")
    return model


def equals(folder: Path, model: Any, model_type: str, allowed: float = SINGLE, time: int = 9) -> None:
    sizes, inputs = inputs_of(model_type, time)
    with opened(folder / "model.pt", Options()) as job:
        close(job.network.outputs(sizes, inputs, torch.float64), outputs_of(model, inputs), allowed)


SMALL = {**LLAMA, "num_hidden_layers": 1}
LONG = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [4.0, 3.0, 2.5, 2.0]}
ROPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "base": ("llama", "LlamaForCausalLM", {"rope_theta": 50.0}),
    "linear": ("llama", "LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama3": (
        "llama",
        "LlamaForCausalLM",
        {
            "rope_theta": 20.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "yarn": (
        "qwen2",
        "Qwen2ForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "longrope": (
        "phi3",
        "Phi3ForCausalLM",
        {"rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 6},
    ),
    "two sets": (
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            **GEMMA,
            "num_hidden_layers": 2,
            "head_dim": 8,
            "sliding_window_pattern": 2,
            "rope_theta": 100.0,
            "rope_local_base_freq": 10.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions_of_all_kinds(name: str, tmp_path: Path) -> None:
    model_type, architecture, settings = ROPES[name]
    model = write(tmp_path, model_type, architecture, {**SMALL, **settings})
    for time in (5, 9):
        equals(tmp_path, model, model_type, time=time)


BERT = {**OLD, "num_hidden_layers": 1}
HEADS = [
    ("llama", "LlamaModel", SMALL),
    ("llama", "LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("gpt2", "GPT2Model", {**GPT2, "n_layer": 1, "n_inner": None, "activation_function": "relu"}),
    ("gpt_neox", "GPTNeoXModel", {**BERT, "attention_bias": False}),
    ("opt", "OPTModel", {**BERT, "ffn_dim": 40, "word_embed_proj_dim": 32, "activation_function": "gelu"}),
    ("bert", "BertModel", BERT),
    ("bert", "BertForSequenceClassification", {**BERT, "hidden_act": "gelu_new"}),
    ("bert", "BertForTokenClassification", BERT),
    ("bert", "BertForPreTraining", BERT),
    ("roberta", "RobertaModel", {**BERT, "pad_token_id": 3}),
    ("roberta", "RobertaForSequenceClassification", {**BERT, "pad_token_id": 3}),
    ("roberta", "RobertaForTokenClassification", {**BERT, "pad_token_id": 3}),
    ("vit", "ViTModel", {**VIT, "num_hidden_layers": 1, "qkv_bias": False, "pooler_output_size": 20}),
]


@pytest.mark.parametrize(("model_type", "architecture", "settings"), HEADS, ids=[item[1] for item in HEADS])
def test_heads(model_type: str, architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = write(tmp_path, model_type, architecture, settings)
    equals(tmp_path, model, model_type)


DECODERS = [
    ("llama", "LlamaForTokenClassification", {**SMALL, "num_labels": 3}),
    ("qwen2", "Qwen2ForTokenClassification", SMALL),
    ("gpt2", "GPT2ForTokenClassification", {**GPT2, "n_layer": 1}),
    ("gpt_neox", "GPTNeoXForTokenClassification", BERT),
]


@pytest.mark.parametrize(("model_type", "architecture", "settings"), DECODERS, ids=[item[1] for item in DECODERS])
def test_decoders_that_class_tokens(
    model_type: str, architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = write(tmp_path, model_type, architecture, settings)
    equals(tmp_path, model, model_type)


SEQUENCES = [
    ("llama", "LlamaForSequenceClassification", {**SMALL, "num_labels": 1}),
    ("gemma2", "Gemma2ForSequenceClassification", {**GEMMA, "num_hidden_layers": 1, "final_logit_softcapping": 5.0}),
    ("phi3", "Phi3ForSequenceClassification", SMALL),
    ("gpt2", "GPT2ForSequenceClassification", {**GPT2, "n_layer": 1}),
    ("gpt_neox", "GPTNeoXForSequenceClassification", BERT),
    ("opt", "OPTForSequenceClassification", {**BERT, "ffn_dim": 40, "word_embed_proj_dim": 32}),
]


@pytest.mark.parametrize(("model_type", "architecture", "settings"), SEQUENCES, ids=[item[1] for item in SEQUENCES])
def test_decoders_that_class_sequences(
    model_type: str, architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The model reads the scores at the last position that is no padding; the spec has all of them."""
    model = write(tmp_path, model_type, architecture, settings)
    sizes, inputs = inputs_of(model_type)
    inputs = {name: value.clamp(min=3) for name, value in inputs.items()}
    with opened(tmp_path / "model.pt", Options()) as job:
        found = job.network.outputs(sizes, inputs, torch.float64)
    close([found[0][:, -1]], outputs_of(model, inputs), SINGLE)


def test_a_reward_model_is_expanded_and_loads(tmp_path: Path) -> None:
    model = write(tmp_path, "llama", "LlamaForSequenceClassification", {**SMALL, "num_labels": 1})
    _, inputs = inputs_of("llama")
    inputs = {name: value.clamp(min=3) for name, value in inputs.items()}
    report = netgrow_cli.expand(tmp_path / "model.pt", layer="model.layers.*.mlp.up_proj", add=5, probes=4)
    wide = model_of(tmp_path, "LlamaForSequenceClassification", "model.expanded.config.json")
    wide.load_state_dict(torch.load(report.output, weights_only=True))
    close(outputs_of(wide, inputs), outputs_of(model, inputs), SINGLE)


def test_spans(tmp_path: Path) -> None:
    """The model cuts the logits into starts and ends."""
    model = write(tmp_path, "bert", "BertForQuestionAnswering", BERT)
    sizes, inputs = inputs_of("bert")
    with opened(tmp_path / "model.pt", Options()) as job:
        found = job.network.outputs(sizes, inputs, torch.float64)
    close(list(found[0].unbind(-1)), outputs_of(model, inputs), EXACT)


def renamed(folder: Path, *pairs: tuple[str, str]) -> None:
    """The weights in a safetensors file, tied ones once, with names as files of old have them."""
    state = torch.load(folder / "model.pt", weights_only=True)
    (folder / "model.pt").unlink()
    seen: dict[int, str] = {}
    for name, tensor in list(state.items()):
        if seen.setdefault(tensor.data_ptr(), name) != name:
            del state[name]
    for old, new in pairs:
        state = {name.replace(old, new): tensor.contiguous() for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors")


OLD_NAMES = [
    ("bert", "BertForMaskedLM", BERT, [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]),
    ("gpt2", "GPT2LMHeadModel", {**GPT2, "n_layer": 1}, [("transformer.", "")]),
    (
        "vit",
        "ViTForImageClassification",
        {**VIT, "num_hidden_layers": 1},
        [
            ("vit.layers", "vit.encoder.layer"),
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ],
    ),
    ("gemma2", "Gemma2ForCausalLM", {**GEMMA, "num_hidden_layers": 1}, []),
]


@pytest.mark.parametrize(("model_type", "architecture", "settings", "pairs"), OLD_NAMES, ids=[i[1] for i in OLD_NAMES])
def test_names_of_old(model_type: str, architecture: str, settings: Any, pairs: Any, tmp_path: Path) -> None:
    model = write(tmp_path, model_type, architecture, settings)
    renamed(tmp_path, *pairs)
    sizes, inputs = inputs_of(model_type)
    with opened(tmp_path / "model.safetensors", Options()) as job:
        close(job.network.outputs(sizes, inputs, torch.float64), outputs_of(model, inputs), SINGLE)


NOT_COVERED = [
    ("llama", "LlamaForCausalLM", SMALL, {"quantization_config": {"bits": 4}}, "quantised"),
    ("llama", "LlamaForCausalLM", SMALL, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ("llama", "LlamaForCausalLM", SMALL, {"hidden_act": "quick_gelu"}, "'quick_gelu'"),
    ("llama", "LlamaForCausalLM", SMALL, {"num_attention_heads": "four"}, "'four'"),
    ("qwen2", "Qwen2ForCausalLM", SMALL, {"tie_word_embeddings": True}, "two tensors"),
    ("gemma2", "Gemma2ForCausalLM", {**GEMMA, "num_hidden_layers": 1}, {"layer_types": ["chunked"]}, "'chunked'"),
    ("gpt2", "GPT2LMHeadModel", GPT2, {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
    ("opt", "OPTForCausalLM", {**BERT, "ffn_dim": 48, "word_embed_proj_dim": 16}, {}, "word_embed_proj_dim"),
    ("bert", "BertForMaskedLM", BERT, {"position_embedding_type": "relative_key"}, "relative_key"),
]


@pytest.mark.parametrize(("model_type", "architecture", "settings", "more", "says"), NOT_COVERED)
def test_what_is_not_covered_is_refused(
    model_type: str, architecture: str, settings: Any, more: Any, says: str, tmp_path: Path
) -> None:
    write(tmp_path, model_type, architecture, settings)
    Family(model_type, architecture, {**settings, **more}, "").write(tmp_path)
    with pytest.raises(SpecError, match="netgrow trace") as refused, opened(tmp_path / "model.pt", Options()):
        pass
    assert says in str(refused.value)


def test_a_configuration_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "llama", "LlamaForCausalLM", SMALL)
    Family("llama", "LlamaForCausalLM", {**SMALL, "intermediate_size": 56}, "").write(tmp_path)
    with pytest.raises(SpecError, match="intermediate_size is 56, but the checkpoint has 48"):
        netgrow_cli.expand(tmp_path / "model.pt", layer="model.layers.0.mlp.gate_proj", add=1)


# -- config.json ---------------------------------------------------------------------------------------


def small_llama(folder: Path) -> Path:
    write(folder, "llama", "LlamaForCausalLM", LLAMA)
    renamed(folder)
    return folder / "model.safetensors"


def test_the_new_configuration_lies_beside_the_output(tmp_path: Path) -> None:
    path, old = small_llama(tmp_path), (tmp_path / "config.json").read_text(encoding="utf-8")
    report = netgrow_cli.expand(path, layer="model.layers.*.mlp.gate_proj", add=8, probes=4)
    assert report.as_json()["config"] == [{"key": "intermediate_size", "before": 48, "after": 56}]
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == old
    new = tmp_path / "model.expanded.config.json"
    assert json.loads(new.read_text(encoding="utf-8")) == {**json.loads(old), "intermediate_size": 56}
    # The next change starts from it, and is refused over an existing one without --force.
    again = netgrow_cli.expand(report.output, layer="model.layers.*.mlp.gate_proj", add=8, probes=4)
    assert [(c.before, c.after) for c in again.config.changes] == [(56, 64)]
    report.output.unlink()
    with pytest.raises(netgrow_cli.UsageError, match=r"config\.json exists"):
        netgrow_cli.expand(path, layer="model.layers.*.mlp.gate_proj", add=8, probes=4)
    assert not report.output.exists()


def test_a_dry_run_writes_no_configuration(tmp_path: Path) -> None:
    path = small_llama(tmp_path)
    report = netgrow_cli.expand(path, layer="model.layers.*.mlp.gate_proj", add=8, dry_run=True)
    assert len(report.config.changes) == 1
    assert sorted(item.name for item in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_layers_that_differ_have_no_configuration(tmp_path: Path) -> None:
    path = small_llama(tmp_path)
    report = netgrow_cli.expand(path, layer="model.layers.1.mlp.gate_proj", add=8, probes=4)
    assert report.config.changes == () and len(report.config.warnings) == 1
    assert "56 in layer 1" in report.warnings[0] or "48 in layer 0" in report.warnings[0]
    assert "--layer 'model.layers.*.mlp.gate_proj'" in report.warnings[0]
    assert not (tmp_path / "model.expanded.config.json").exists()
    # One of an earlier output under that name would be taken for its own.
    (tmp_path / "model.expanded.config.json").write_text("{}", encoding="utf-8")
    layer = "model.layers.1.mlp.gate_proj"
    report.output.unlink()
    with pytest.raises(netgrow_cli.UsageError, match=r"config\.json exists"):
        netgrow_cli.expand(path, layer=layer, add=8, probes=4)
    report = netgrow_cli.expand(path, layer=layer, add=8, probes=4, force=True)
    assert not (tmp_path / "model.expanded.config.json").exists()
    # What was behind is caught up with.
    layer = "model.layers.0.mlp.gate_proj"
    again = netgrow_cli.expand(report.output, layer=layer, add=8, output=tmp_path / "b.safetensors", probes=4)
    assert [(c.key, c.before, c.after) for c in again.config.changes] == [("intermediate_size", 48, 56)]


def test_sizes_of_values_alone_have_no_configuration(tmp_path: Path) -> None:
    path = small_llama(tmp_path)
    widths = [f"model.layers.{layer}.self_attn.v_proj.1" for layer in range(2)]
    report = netgrow_cli.expand(path, width=widths, add=2, probes=4)
    assert any("head_dim" in line and "no configuration" in line for line in report.warnings)


def test_numbers_that_a_configuration_lacks_are_said(tmp_path: Path) -> None:
    """OPT's code has the eps of its norms as a constant, and Qwen3 one eps for the stream and for heads."""
    for model_type, architecture, settings, width, says in (
        (
            "opt",
            "OPTForCausalLM",
            {**BERT, "ffn_dim": 48, "word_embed_proj_dim": 32},
            "model.decoder.embed_tokens",
            "eps",
        ),
        ("qwen3", "Qwen3ForCausalLM", {**SMALL, "head_dim": 8}, "model.embed_tokens", "rms_norm_eps"),
    ):
        folder = tmp_path / model_type
        folder.mkdir()
        write(folder, model_type, architecture, settings)
        report = netgrow_cli.expand(folder / "model.pt", width=width, add=8, probes=4)
        assert any(says in line for line in report.config.warnings)


def test_heads_that_do_not_divide_the_stream_are_said(tmp_path: Path) -> None:
    path = small_llama(tmp_path)
    widths = [f"model.layers.{layer}.self_attn.q_proj.kv_heads" for layer in range(2)]
    report = netgrow_cli.expand(path, width=widths, add=1, probes=4)
    assert {c.key: c.after for c in report.config.changes} == {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
    }
    assert "hidden_size 32 is no multiple of num_attention_heads 6" in report.config.warnings[0]


def test_gemma_may_not_grow_its_stream(tmp_path: Path) -> None:
    write(tmp_path, "gemma2", "Gemma2ForCausalLM", {**GEMMA, "num_hidden_layers": 1})
    with pytest.raises(Refused, match="root_scale"):
        netgrow_cli.expand(tmp_path / "model.pt", width="model.embed_tokens", add=8)


def test_recipes_change_the_configuration_once(tmp_path: Path) -> None:
    from netgrow_cli.jobs.recipe import apply_recipe, read_recipe

    path = small_llama(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "netgrow: 1\nchanges:\n"
        "  - expand: {layer: 'model.layers.*.mlp.gate_proj', add: 8}\n"
        "  - expand: {width: model.embed_tokens, add: 8}\n"
        "  - split: {layer: 'model.layers.*.mlp.gate_proj', units: [0]}\n"
    )
    output, _ = apply_recipe(path, read_recipe(recipe), Options(probes=4))
    new = json.loads((tmp_path / "model.edited.config.json").read_text(encoding="utf-8"))
    assert (new["intermediate_size"], new["hidden_size"], new["head_dim"]) == (57, 40, 8)
    assert new["rms_norm_eps"] == pytest.approx(0.8e-6)
    assert sorted(item.name for item in tmp_path.iterdir() if "edited" in item.name) == [
        "model.edited.config.json",
        output.name,
    ]


def test_neither_torch_nor_transformers_is_needed_for_a_plan(tmp_path: Path) -> None:
    path = small_llama(tmp_path)
    code = (
        "import sys; from netgrow_cli.cli import main\n"
        f"sys.argv = ['netgrow', 'expand', {str(path)!r}, '--layer', 'model.layers.*.mlp.gate_proj', '--add', '8',"
        " '--dry-run', '--json']\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"] == [{"key": "intermediate_size", "before": 48, "after": 56}]
