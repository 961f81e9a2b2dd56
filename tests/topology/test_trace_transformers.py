"""Traces of language models as transformers writes them, from their configurations with small sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import netgrow_cli
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.topology.trace.source import trace_source

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

PROBES = 4
NOISE = 1e-6
"""Some of the models compute norms, softmax or positions in float32 whatever they are loaded in."""

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A model type: its settings, the width of an MLP, and what its configuration calls it.

    free: how many widths may change: the stream, and by layer heads (in two numbers where keys have fewer), sizes of
    values, sizes of queries where no rotary table is bound to them, and the MLP.
    """

    model_type: str
    architecture: str
    settings: dict[str, Any]
    width: str
    setting: str
    free: int = 9

    def __str__(self) -> str:
        return self.model_type

    def write(self, folder: Path, **changes: Any) -> Path:
        """A folder with the configuration, as a download has it."""
        folder.mkdir(exist_ok=True)
        stated = {"model_type": self.model_type, "architectures": [self.architecture], **self.settings, **changes}
        (folder / "config.json").write_text(json.dumps(stated), encoding="utf-8")
        return folder

    def model(self, folder: Path) -> Any:
        """The model with all numbers at random, in float64."""
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(str(folder))
        model = getattr(transformers, self.architecture)._from_config(config).double().eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.copy_(torch.randn_like(tensor) * 0.3)
        return model


def old(model_type: str, **more: Any) -> dict[str, Any]:
    """GPT-NeoX, OPT and BERT have no groups of heads."""
    return {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "sliding_window")} | more


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": 64, "n_positions": 32,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
GEMMA = {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}

FAMILIES = [
    Family("llama", "LlamaForCausalLM", LLAMA, "model.layers.1.mlp.gate_proj", "intermediate_size"),
    Family("mistral", "MistralForCausalLM", LLAMA, "model.layers.1.mlp.gate_proj", "intermediate_size"),
    Family("qwen2", "Qwen2ForCausalLM", LLAMA, "model.layers.1.mlp.gate_proj", "intermediate_size"),
    Family("gemma2", "Gemma2ForCausalLM", GEMMA, "model.layers.1.mlp.gate_proj", "intermediate_size"),
    Family("phi3", "Phi3ForCausalLM", LLAMA, "model.layers.1.mlp.gate_up_proj[0:48]", "intermediate_size"),
    Family("gpt2", "GPT2LMHeadModel", GPT2, "transformer.h.1.mlp.c_fc", "n_inner"),
    Family(
        "gpt_neox", "GPTNeoXForCausalLM", old("gpt_neox"), "gpt_neox.layers.1.mlp.dense_h_to_4h", "intermediate_size"
    ),
    Family(
        "opt", "OPTForCausalLM", old("opt", ffn_dim=48, word_embed_proj_dim=32), "model.decoder.layers.1.fc1", "ffn_dim"
    ),
    Family("bert", "BertForMaskedLM", old("bert"), "bert.encoder.layer.1.intermediate.dense", "intermediate_size"),
]


@dataclasses.dataclass(frozen=True)
class Saved:
    """A traced model, with its checkpoint and its spec on disk."""

    family: Family
    model: Any
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.pt"

    @property
    def options(self) -> Options:
        return Options(spec=self.folder / "model.yaml")


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    family: Family = request.param
    folder = family.write(tmp_path_factory.mktemp("family"))
    made = Saved(family, family.model(folder), folder)
    (folder / "model.yaml").write_text(trace_source(str(folder), []).text, encoding="utf-8")
    torch.save(made.model.state_dict(), made.checkpoint)
    return made


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((found - wanted).abs().max() / wanted.abs().max()) < NOISE


def test_the_graph_computes_what_the_model_computes(saved: Saved) -> None:
    with opened(saved.checkpoint, saved.options) as job:
        assert job.topology.unclaimed == ()
        for sizes, inputs in job.probes(PROBES, 0).batches(torch.float64):
            found = job.network.outputs(sizes, inputs, torch.float64)
            close(found[0], logits(saved.model, inputs["input_ids"]))


def test_units_may_be_permuted(saved: Saved) -> None:
    with opened(saved.checkpoint, saved.options) as job:
        found = certify(job.network, job.probes(PROBES, 0), seed=0, dtype="float64", tolerance=1e-12)
    assert found.equivalence.equal and not found.equivalence.constant, found.culprits
    assert found.widths == saved.family.free


def test_a_wider_mlp_goes_back_into_the_model(saved: Saved, tmp_path: Path) -> None:
    """One layer's MLP is not enough for a configuration that has one number for all, so all layers change."""
    family, output = saved.family, tmp_path / "wider.pt"
    widths = [family.width.replace(".1.", f".{layer}.") for layer in range(2)]
    report = netgrow_cli.expand(
        saved.checkpoint, width=widths, add=16, spec=saved.options.spec, output=output, probes=PROBES
    )
    assert report.equivalence is not None and report.equivalence.equal
    wider = family.model(family.write(tmp_path / "wider", **{family.setting: 64}))
    state = torch.load(output, weights_only=True)
    wider.load_state_dict(state, strict=True)
    tokens = torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    close(logits(wider, tokens), logits(saved.model, tokens))
