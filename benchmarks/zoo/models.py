"""The catalogue: all of torchvision's classification, segmentation and video models, many of timm and transformers.

Inputs are as small as the models take; transformers are built from configurations with small sizes. Only the library
that a model belongs to is imported.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.zoo.entry import Entry

LIBRARIES = ("torchvision", "timm", "transformers")


def catalogue(library: str) -> dict[str, Entry]:
    """The models of one library by name, the small ones first."""
    found = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library]()
    return {entry.name: entry for entry in found}


# -- torchvision -------------------------------------------------------------------------------------

_IMAGE = "float32[2,3,{0},{0}]"
_SIDES = {"inception_v3": 96, "maxvit_t": 224, "alexnet": 64, "vit_h_14": 56, "squeezenet1_0": 64}
_VIT_H = {"patch_size": 14, "num_layers": 32, "num_heads": 16, "hidden_dim": 320, "mlp_dim": 1280}
"""vit_h_14 at a quarter of its widths: at full size its split alone takes more memory than most machines have."""

_CLIPS = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}


def _torchvision() -> Iterator[Entry]:
    models = importlib.import_module("torchvision.models")
    for name in models.list_models(module=models):
        settings: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):
            settings = {"aux_logits": False, "init_weights": False}
        side = _SIDES.get(name, 64)
        if name.startswith("vit_"):
            settings = {"image_size": side}
        make = functools.partial(models.get_model, name, weights=None, **settings)
        if name == "vit_h_14":
            make = functools.partial(models.VisionTransformer, **_VIT_H, **settings)
        yield Entry(name, "torchvision", make, (_IMAGE.format(side),))
    for name in models.list_models(module=models.segmentation):
        make = functools.partial(models.get_model, name, weights=None, weights_backbone=None)
        yield Entry(name, "torchvision", make, (_IMAGE.format(64),))
    for name in models.list_models(module=models.video):
        frames, side = _CLIPS.get(name, (4, 64))
        batch = 1 if frames > 4 else 2
        make = functools.partial(models.get_model, name, weights=None)
        yield Entry(name, "torchvision", make, (f"float32[{batch},3,{frames},{side},{side}]",), batch=batch)


# -- timm --------------------------------------------------------------------------------------------

_TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "deit3_small_patch16_224": (64, {"img_size": 64}),
    "beit_base_patch16_224": (64, {"img_size": 64}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "num_classes": 10}),
    "vit_srelpos_small_patch16_224": (64, {"img_size": 64}),
    "cait_xxs24_224": (64, {"img_size": 64}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64}),
    "crossvit_tiny_240": (240, {}),
    "pit_ti_224": (64, {"img_size": 64}),
    "levit_128s": (64, {"img_size": 64}),
    "volo_d1_224": (64, {"img_size": 64}),
    "tnt_s_patch16_224": (64, {"img_size": 64}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "window_size": 2}),
    "coat_lite_tiny": (64, {"img_size": 64}),
    "coatnet_nano_rw_224": (64, {"img_size": 64}),
    "maxvit_nano_rw_256": (64, {"img_size": 64}),
    "twins_pcpvt_small": (64, {"img_size": 64}),
    "pvt_v2_b0": (64, {}),
    "davit_tiny": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "gmlp_s16_224": (64, {"img_size": 64}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "poolformer_s12": (64, {}),
    "convmixer_768_32": (64, {}),
    "convnext_atto": (64, {}),
    "convnextv2_atto": (64, {}),
    "edgenext_xx_small": (64, {}),
    "mobilevit_xxs": (64, {}),
    "fastvit_t8": (64, {}),
    "efficientformer_l1": (224, {}),
    "inception_next_tiny": (64, {}),
    "repvit_m0_9": (64, {}),
    "starnet_s1": (64, {}),
    "rdnet_tiny": (64, {}),
    "resnetv2_50": (64, {}),
    "resnetv2_50x1_bit": (64, {}),
    "seresnet18": (64, {}),
    "skresnet18": (64, {}),
    "resnest14d": (64, {}),
    "res2net50_26w_4s": (64, {}),
    "eca_resnet33ts": (64, {}),
    "regnety_002": (64, {}),
    "repvgg_a0": (64, {}),
    "mobileone_s0": (64, {}),
    "ghostnet_050": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "efficientnet_b0": (64, {}),
    "hgnet_tiny": (64, {}),
    "dla34": (64, {}),
    "hrnet_w18_small": (64, {}),
    "dm_nfnet_f0": (64, {}),
    "dpn68": (64, {}),
    "ese_vovnet19b_dw": (64, {}),
    "cspresnet50": (64, {}),
    "darknet53": (64, {}),
    "tresnet_m": (64, {}),
}


def _timm() -> Iterator[Entry]:
    timm = importlib.import_module("timm")
    for name, (side, settings) in _TIMM.items():
        make = functools.partial(timm.create_model, name, pretrained=False, **settings)
        yield Entry(f"timm/{name}", "timm", make, (_IMAGE.format(side),))


# -- transformers ------------------------------------------------------------------------------------

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "sliding_window": None}
_GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 64,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_TOKENS = ("int64[2,9]:60",)
_PIXELS = ("float32[2,3,32,32]",)

# By name: the class, its configuration, its inputs.
_CONFIGURED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("LlamaForCausalLM", _GROUPED, _TOKENS),
    "mistral": ("MistralForCausalLM", _GROUPED, _TOKENS),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED, _TOKENS),
    "qwen3": ("Qwen3ForCausalLM", {**_GROUPED, "head_dim": 8}, _TOKENS),
    "gemma": ("GemmaForCausalLM", {**_GROUPED, "head_dim": 8}, _TOKENS),
    "gemma2": ("Gemma2ForCausalLM", _GEMMA, _TOKENS),
    "gemma3_text": ("Gemma3ForCausalLM", _GEMMA, _TOKENS),
    "phi": ("PhiForCausalLM", _SMALL, _TOKENS),
    "phi3": ("Phi3ForCausalLM", _GROUPED, _TOKENS),
    "olmo": ("OlmoForCausalLM", _GROUPED, _TOKENS),
    "olmo2": ("Olmo2ForCausalLM", _GROUPED, _TOKENS),
    "cohere": ("CohereForCausalLM", _GROUPED, _TOKENS),
    "granite": ("GraniteForCausalLM", _GROUPED, _TOKENS),
    "starcoder2": ("Starcoder2ForCausalLM", _GROUPED, _TOKENS),
    "stablelm": ("StableLmForCausalLM", _GROUPED, _TOKENS),
    "glm4": ("Glm4ForCausalLM", {**_GROUPED, "head_dim": 8}, _TOKENS),
    "gpt2": ("GPT2LMHeadModel", {**_GPT2, "n_inner": 48}, _TOKENS),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {**_GPT2, "n_inner": 48}, _TOKENS),
    "gptj": ("GPTJForCausalLM", {**_GPT2, "n_inner": 48, "rotary_dim": 4}, _TOKENS),
    "codegen": ("CodeGenForCausalLM", {**_GPT2, "n_inner": 48, "rotary_dim": 4}, _TOKENS),
    "gpt_neox": ("GPTNeoXForCausalLM", _SMALL, _TOKENS),
    "opt": ("OPTForCausalLM", {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}, _TOKENS),
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}, _TOKENS),
    "falcon": ("FalconForCausalLM", {**_SMALL, "new_decoder_architecture": True, "num_kv_heads": 2}, _TOKENS),
    "falcon_7b": ("FalconForCausalLM", {**_SMALL, "multi_query": True}, _TOKENS),
    "mpt": (
        "MptForCausalLM",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": 32},
        _TOKENS,
    ),
    "mixtral": ("MixtralForCausalLM", {**_GROUPED, **_EXPERTS}, _TOKENS),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**_GROUPED, **_EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
        _TOKENS,
    ),
    "olmoe": ("OlmoeForCausalLM", {**_GROUPED, **_EXPERTS}, _TOKENS),
    "bert": ("BertForMaskedLM", _SMALL, _TOKENS),
    "roberta": ("RobertaForMaskedLM", _SMALL, _TOKENS),
    "xlm_roberta": ("XLMRobertaForMaskedLM", _SMALL, _TOKENS),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "max_position_embeddings": 32},
        _TOKENS,
    ),
    "albert": ("AlbertForMaskedLM", {**_SMALL, "embedding_size": 16}, _TOKENS),
    "electra": ("ElectraForMaskedLM", {**_SMALL, "embedding_size": 16}, _TOKENS),
    "mobilebert": (
        "MobileBertForMaskedLM",
        {**_SMALL, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        _TOKENS,
    ),
    "deberta_v2": (
        "DebertaV2ForMaskedLM",
        {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        _TOKENS,
    ),
    "modernbert": ("ModernBertForMaskedLM", {**_SMALL, "local_attention": 8}, _TOKENS),
    "t5_encoder": (
        "T5ForTokenClassification",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64},
        _TOKENS,
    ),
    "whisper_encoder": (
        "WhisperForAudioClassification",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "classifier_proj_size": 16,
        },
        ("float32[2,8,20]",),
    ),
    "vit": ("ViTForImageClassification", _VISION, _PIXELS),
    "beit": ("BeitForImageClassification", _VISION, _PIXELS),
    "dinov2": ("Dinov2ForImageClassification", {**_VISION, "use_mask_token": False}, _PIXELS),
    "siglip_vision": (
        "SiglipForImageClassification",
        {"vision_config": {**_VISION, "vision_use_head": False}},
        _PIXELS,
    ),
    "clip_vision": ("CLIPForImageClassification", {"vision_config": _VISION}, _PIXELS),
    "swin": (
        "SwinForImageClassification",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2},
        _PIXELS,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [16, 24, 32, 40],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 5],
            "decoder_hidden_size": 24,
        },
        ("float32[2,3,64,64]",),
    ),
    "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}, _PIXELS),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 2]},
        _PIXELS,
    ),
}


def _transformers() -> Iterator[Entry]:
    library = importlib.import_module("transformers")
    for name, (architecture, settings, inputs) in _CONFIGURED.items():
        make = functools.partial(_configured, library, architecture, settings)
        options = {"use_cache": False} if _takes(library, architecture, "use_cache") else {}
        # Norms, softmax and rotary positions are computed in float32 whatever the model is loaded in.
        yield Entry(f"transformers/{name}", "transformers", make, inputs, options, tolerance=1e-5)


def _configured(library: Any, architecture: str, settings: dict[str, Any]) -> torch.nn.Module:
    kind: Any = getattr(library, architecture)
    model = kind(kind.config_class(**settings))
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"  # (products of all experts at once take no float64)
    built: torch.nn.Module = model
    return built


def _takes(library: Any, architecture: str, argument: str) -> bool:
    forward: Callable[..., Any] = getattr(library, architecture).forward
    return argument in importlib.import_module("inspect").signature(forward).parameters
