"""Specs that ship with netgrow, for models that a `config.json` or the tensors' names tell.

A family is a template (`llama.yaml`) and a function that says what stands in it. transformers is not needed.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Graph
from netgrow_cli.topology.shipped.decoders import Values, gemma, gpt2, gpt_neox, llama, opt, phi3
from netgrow_cli.topology.shipped.encoders import bert, vit
from netgrow_cli.topology.shipped.settings import Settings, config_path, read_config
from netgrow_cli.topology.shipped.template import fill, template


@frozen
class Shipped:
    """A spec's text for one checkpoint. assumed: what the tensors alone do not tell."""

    family: str
    text: str
    origin: str
    assumed: tuple[str, ...] = ()


@frozen
class _Family:
    """A model type: its template, what stands in it, and the defaults where config.json is silent."""

    template: str
    values: Callable[[Settings], Values]
    defaults: Mapping[str, Any]


_ROPE = {"rope_theta": 10000.0, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
_QWEN = {
    **_ROPE,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA = {
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_BERT = {
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

FAMILIES: Mapping[str, _Family] = {
    "llama": _Family("llama", llama, {**_ROPE, "num_attention_heads": 32}),
    "mistral": _Family(
        "llama",
        llama,
        {
            **_ROPE,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "max_position_embeddings": 131072,
        },
    ),
    "qwen2": _Family("llama", llama, _QWEN),
    "qwen3": _Family("llama", llama, {**_QWEN, "head_dim": 128}),
    "gemma2": _Family(
        "gemma",
        gemma,
        {**_GEMMA, "rope_theta": 10000.0, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    ),
    "gemma3_text": _Family("gemma", gemma, {**_GEMMA, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}),
    "phi3": _Family(
        "phi3",
        phi3,
        {
            **_ROPE,
            "rms_norm_eps": 1e-5,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
    ),
    "gpt2": _Family(
        "gpt2",
        gpt2,
        {
            "n_head": 12,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_neox": _Family(
        "gpt_neox",
        gpt_neox,
        {
            "num_attention_heads": 64,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "use_parallel_residual": True,
            "max_position_embeddings": 2048,
            "rotary_emb_base": 10000.0,
            "rotary_pct": 0.25,
        },
    ),
    "opt": _Family(
        "opt",
        opt,
        {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "tie_word_embeddings": True,
        },
    ),
    "bert": _Family("bert", bert, _BERT),
    "roberta": _Family("bert", bert, {**_BERT, "pad_token_id": 1}),
    "vit": _Family(
        "vit",
        vit,
        {
            "num_attention_heads": 12,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "image_size": 224,
            "patch_size": 16,
            "pooler_act": "tanh",
        },
    ),
}

_RESNET = re.compile(
    r"(conv1|bn1|fc|layer[1-4]\.\d+\.(conv[1-3]|bn[1-3]|downsample\.[01]))\."
    r"(weight|bias|running_mean|running_var|num_batches_tracked)"
)


def find_shipped(tensors: Mapping[str, TensorInfo], checkpoint: Path) -> Shipped | None:
    """The shipped spec of a checkpoint, None where none is meant. Raises SpecError where it does not cover a model."""
    path = config_path(checkpoint)
    stated = read_config(path) if path is not None else {}
    family = FAMILIES.get(str(stated.get("model_type")))
    if path is None or family is None:
        return _resnet(tensors)
    name = str(stated["model_type"])
    config = Settings(path, name, stated, family.defaults, tensors)
    if config.get("quantization_config") is not None:
        config.refuse("its weights are quantised (quantization_config)")
    text = fill(template(family.template), family.values(config))
    return Shipped(name, text, f"shipped for {name} ({path.name})")


def require_known(family: str, checkpoint: Path, graph: Graph, tensors: Mapping[str, TensorInfo]) -> None:
    """Every tensor must have its layer: a head or an adapter that the shipped spec lacks may read what changes."""
    named = {tensors[name].tied_to or name for node in graph.nodes for name in node.params.values()}
    patterns = (*graph.ignore, "*num_batches_tracked")
    unknown = [
        name
        for name, info in tensors.items()
        if (info.tied_to or name) not in named and not any(fnmatch.fnmatchcase(name, item) for item in patterns)
    ]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        raise SpecError(
            f"{checkpoint}: the spec that ships for {family} has no layer for {', '.join(unknown[:3])}{more}; "
            f"`netgrow trace {folder} -o model.yaml` makes one from the model's own code, for --spec"
        )


def _resnet(tensors: Mapping[str, TensorInfo]) -> Shipped | None:
    """torchvision's resnets, by the names and the first kernel."""
    first, classifier = tensors.get("conv1.weight"), tensors.get("fc.weight")
    if first is None or classifier is None or len(first.shape) != 4 or first.shape[2:] != (7, 7):
        return None
    needed = [f"layer{stage}.0.conv2.weight" for stage in (1, 2, 3, 4)]
    if not all(name in tensors for name in needed) or not all(_RESNET.fullmatch(name) for name in tensors):
        return None
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    text = fill(template(f"resnet_{kind}"), {"channels": first.shape[1]})
    return Shipped(
        "resnet",
        text,
        "shipped for torchvision's resnets (by the tensors' names)",
        ("torchvision's resnet, by the names of its tensors: relu, and strides as there",),
    )
