"""Traces of mixtures of experts as transformers writes them, from their configurations with small sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import netgrow_cli
from netgrow_cli.errors import Refused
from netgrow_cli.jobs.job import Options, opened
from netgrow_cli.proof.permutation import certify
from netgrow_cli.topology.layout import leaves
from netgrow_cli.topology.trace.source import trace_source

from .test_trace_transformers import LLAMA, NOISE, PROBES, Family, logits

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {**LLAMA, "num_hidden_layers": 1, "head_dim": 8}
MOE = {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
DEEPSEEK = {**{key: value for key, value in SMALL.items() if key != "head_dim"}, "num_key_value_heads": 4,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "n_shared_experts": 1,
            "kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
            "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mixture(Family):
    """width: the experts' inner width. free: stream, heads (two numbers), values, inner widths."""

    free: int = 5

    def model(self, folder: Path) -> Any:
        """The model with all numbers at random, in float64, which the default way to run experts does not take."""
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(str(folder))
        kind = getattr(transformers, self.architecture)
        model = kind._from_config(config, experts_implementation="eager").double().eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.copy_(torch.randn_like(tensor) * 0.3)
        return model


EXPERTS = "model.layers.0.mlp.experts"
FAMILIES = [
    Mixture("mixtral", "MixtralForCausalLM", {**SMALL, "num_local_experts": 4}, f"{EXPERTS}[0:48]",
            "intermediate_size"),
    Mixture("qwen2_moe", "Qwen2MoeForCausalLM", {**MOE, "shared_expert_intermediate_size": 24}, f"{EXPERTS}[0:20]",
            "moe_intermediate_size", 6),
    Mixture("qwen3_moe", "Qwen3MoeForCausalLM", MOE, f"{EXPERTS}[0:20]", "moe_intermediate_size"),
    Mixture("olmoe", "OlmoeForCausalLM", MOE, f"{EXPERTS}[0:48]", "intermediate_size"),
    Mixture("deepseek_v2", "DeepseekV2ForCausalLM", {**DEEPSEEK, "topk_method": "greedy"}, f"{EXPERTS}[0:20]",
            "moe_intermediate_size", 8),
    Mixture("deepseek_v3", "DeepseekV3ForCausalLM", DEEPSEEK, f"{EXPERTS}[0:20]", "moe_intermediate_size", 8),
    Mixture("gpt_oss", "GptOssForCausalLM", {**SMALL, "num_local_experts": 4, "sliding_window": 16},
            f"{EXPERTS}.gate_up_proj_bias.value", "intermediate_size"),
    Mixture("llama4_text", "Llama4ForCausalLM", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 1},
            "model.layers.0.feed_forward.experts[0:48]", "intermediate_size", 6),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Saved:
    family: Mixture
    model: Any
    folder: Path
    unknown: dict[str, int]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.pt"

    @property
    def options(self) -> Options:
        return Options(spec=self.folder / "model.yaml")


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    family: Mixture = request.param
    folder = family.write(tmp_path_factory.mktemp("mixture"))
    model = family.model(folder)
    traced = trace_source(str(folder), [])
    assert traced.warnings == ()
    (folder / "model.yaml").write_text(traced.text, encoding="utf-8")
    torch.save(model.state_dict(), folder / "model.pt")
    return Saved(family, model, folder, traced.unknown)


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return float((found - wanted).abs().max() / wanted.abs().max()) < NOISE


def test_the_graph_is_the_model_and_its_units_may_be_permuted(saved: Saved) -> None:
    with opened(saved.checkpoint, saved.options) as job:
        assert job.topology.unclaimed == ()
        sizes, inputs = next(iter(job.probes(PROBES, 0).batches(torch.float64)))
        found = job.network.outputs(dict(sizes), inputs, torch.float64)
        assert near(found[0], logits(saved.model, inputs["input_ids"]))
        certified = certify(job.network, job.probes(PROBES, 0), seed=0, dtype="float64", tolerance=1e-12)
        infos = job.topology.widths
        free = {identity for identity, info in infos.items() if info.frozen is None}
        sizes = {name: tensor.numel() for name, tensor in saved.model.state_dict().items()}
        changing = sum(
            sizes[name]
            for name, axes in job.topology.tensors.items()
            if any(leaf.id in free for axis in axes for leaf in leaves(axis))
        )
        experts = [info.frozen for info in infos.values() if info.size == 4 and "works along it" in str(info.frozen)]
    assert certified.equivalence.equal and not certified.equivalence.constant, certified.culprits
    assert certified.widths == saved.family.free
    assert changing / sum(sizes.values()) >= 0.99
    assert experts or saved.family.model_type == "deepseek_v3"  # (whose experts are two groups of two)


@pytest.mark.parametrize("command", ["expand", "split"])
def test_every_width_changes(saved: Saved, command: str, tmp_path: Path) -> None:
    """By the proof; and those inside an MLP or its experts in the model's own code as it stands."""
    if saved.family.model_type in ("olmoe", "qwen3_moe", "deepseek_v2"):
        pytest.skip("the experts are those of Qwen2 and DeepSeek V3")
    tokens = torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    before = logits(saved.model, tokens)
    how: dict[str, Any] = {"times": 2} if command == "expand" else {"units": [0]}
    with opened(saved.checkpoint, saved.options) as job:
        free = [info for info in job.topology.widths.values() if info.frozen is None]
    hosted = set()
    for info in free:
        output = tmp_path / "changed.pt"
        try:
            report = getattr(netgrow_cli, command)(
                saved.checkpoint, width=info.name, spec=saved.options.spec, output=output, probes=1, force=True, **how
            )
        except Refused:
            assert info.effects, info.name
            continue
        assert report.equivalence is not None and report.equivalence.equal, info.name
        if info.name == saved.family.width or not report.as_json()["model_code"]:
            model = netgrow_cli.fit(saved.family.model(saved.folder), output)
            assert near(logits(model, tokens), before), info.name
            hosted.add(info.name)
    assert saved.family.width in hosted


def test_wider_experts_go_back_into_the_model(saved: Saved, tmp_path: Path) -> None:
    """From a changed configuration; experts that are shared have the same number."""
    family, output = saved.family, tmp_path / "wider.pt"
    shared = [".shared_experts.gate_proj", ".shared_expert.gate_proj"]
    with opened(saved.checkpoint, saved.options) as job:
        names = [info.name for info in job.topology.widths.values()]
        before = next(info.size for info in job.topology.widths.values() if info.name == family.width)
    more = [name for name in names if name.endswith(tuple(shared)) and family.model_type != "qwen2_moe"]
    report = netgrow_cli.expand(
        saved.checkpoint, width=[family.width, *more], add=4, spec=saved.options.spec, output=output, probes=PROBES
    )
    assert report.equivalence is not None and report.equivalence.equal
    wider = family.model(family.write(tmp_path / "wider", **{family.setting: before + 4}))
    wider.load_state_dict(torch.load(output, weights_only=True), strict=True)
    tokens = torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    assert near(logits(wider, tokens), logits(saved.model, tokens))
