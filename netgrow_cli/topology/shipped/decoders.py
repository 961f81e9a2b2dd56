"""What the templates of language models need to know of a `config.json`: llama and its kin, gemma, phi3, gpt2,
gpt_neox, opt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.shipped.rope import Rope, rotary, stated_rope
from netgrow_cli.topology.shipped.settings import Settings
from netgrow_cli.topology.shipped.template import each, settings

Values = dict[str, Any]

_ACTIVATIONS = {
    **{name: name for name in ("relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "mish")},
    "swish": "silu",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu, approximate: tanh"),
}


def activation(config: Settings, *keys: str) -> str:
    """The function between layers, by the first of the keys that states one."""
    name = next((config.get(key) for key in keys if config.get(key) is not None), None)
    if name not in _ACTIVATIONS:
        config.refuse(f"{keys[0]} is {name!r}")
    return _ACTIVATIONS[name]


def base_of(config: Settings, bases: tuple[str, ...], anchor: str) -> str:
    """What stands before the names of the model below its heads: `model.`, or nothing."""
    found = next((base for base in bases if base + anchor in config.tensors), None)
    if found is None:
        config.shape(bases[0] + anchor)
    return found or ""


def head_dim_of(config: Settings, units: int, heads: str) -> int:
    """Indices of a head, where the configuration has no number for them."""
    count = config.whole(heads)
    if units % count:
        config.refuse(f"{units} units do not fall into {count} heads ({heads})")
    return units // count


HEADS = ("score", "classifier", "qa_outputs")
"""What stands in place of the logits: of sequences and tokens, of tokens, of answers. At all positions; which of them
a sequence's score is read at is left to the model."""


@frozen
class Head:
    """The last layer, None where the checkpoint has none. weight: that of logits, its own or the embedding's."""

    name: str | None
    weight: str | None = None

    def values(self, output: str) -> Values:
        """What templates need. output: the layer behind which the head stands."""
        weight = "" if self.weight is None else f", params: {{weight: {self.weight}}}"
        return {"head": self.name, "head_params": weight, "output": self.name or output}


def head_of(config: Settings, base: str, embedding: str, name: str = "lm_head") -> Head:
    """The head, whose weight may be the embedding's. A base model saved alone has none."""
    tied, weight = bool(config.get("tie_word_embeddings")), f"{name}.weight"
    if weight in config.tensors:
        if tied and config.tensors[weight].tied_to is None and config.tensors[embedding].tied_to is None:
            config.refuse(f"tie_word_embeddings is true, but {weight} and {embedding} are two tensors in the file")
        return Head(name, weight)
    other = next((other for other in HEADS if f"{other}.weight" in config.tensors), None)
    if other is not None:
        return Head(other)
    architectures = config.get("architectures") or []
    saved_alone = not base if not architectures else not any("LM" in str(item) for item in architectures)
    return Head(name, embedding) if tied and not saved_alone else Head(None)


def _attention_windows(config: Settings, layers: int) -> Any:
    """`window` for all layers, or one for each, by layer_types."""
    window = config.get("sliding_window")
    kinds = layer_kinds(config, layers)
    return each([window if kind == "sliding_attention" else None for kind in kinds])


def layer_kinds(config: Settings, layers: int) -> list[str]:
    """The kind of attention of each layer."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, (list, tuple)) or len(kinds) != layers:
        config.refuse(f"layer_types should name {layers} layers")
    unknown = next((kind for kind in kinds if kind not in ("full_attention", "sliding_attention")), None)
    if unknown is not None:
        config.refuse(f"layer_types names {unknown!r}")
    return list(kinds)


def _count(config: Settings, prefix: str) -> int:
    """How many blocks the checkpoint has."""
    start = len(prefix)
    return len({name[start:].partition(".")[0] for name in config.tensors if name.startswith(prefix)})


def _grouped(config: Settings, base: str, head_dim: int) -> Values:
    """What llama, gemma and phi3 have in common."""
    embedding = f"{base}embed_tokens.weight"
    stated = config.defaults.get("head_dim")
    kv_heads = config.defaults.get("num_key_value_heads")
    if "num_key_value_heads" in config.stated and config.stated["num_key_value_heads"] is None:
        kv_heads = None
    return {
        "base": base,
        "family": config.family,
        "tokens": config.rows(embedding),
        "head_dim": head_dim,
        "eps": config.real("rms_norm_eps"),
        "activation": activation(config, "hidden_activation", "hidden_act"),
        "default_kv_heads": kv_heads or "num_attention_heads",
        "default_head_dim": stated or "hidden_size / num_attention_heads",
        **head_of(config, base, embedding).values(f"{base}norm"),
    }


def _head_dim(config: Settings, base: str) -> int:
    if config.get("head_dim") is not None:
        return config.whole("head_dim")
    return head_dim_of(config, config.shape(f"{base}embed_tokens.weight")[1], "num_attention_heads")


def llama(config: Settings) -> Values:
    """llama, mistral, qwen2, qwen3."""
    base = base_of(config, ("model.", ""), "embed_tokens.weight")
    head_dim, layers = _head_dim(config, base), _count(config, f"{base}layers.")
    window = None
    if config.family == "mistral":
        window = config.get("sliding_window")
    elif config.family in ("qwen2", "qwen3"):
        window = _qwen_windows(config, layers)
    norms = config.family == "qwen3"
    values = _grouped(config, base, head_dim)
    return {
        **values,
        "head_norms": norms,
        "of_head": "norm" if norms else "heads",
        "rotary": settings(**rotary(config, stated_rope(config), head_dim)),
        "window": settings(window=window),
        "multiple": ", multiple_of: num_attention_heads" if config.family == "llama" else "",
    }


def _qwen_windows(config: Settings, layers: int) -> Any:
    if not config.get("use_sliding_window"):
        return None
    if config.get("layer_types") is not None:
        return _attention_windows(config, layers)
    window, first = config.get("sliding_window"), config.whole("max_window_layers")
    return each([window if layer >= first else None for layer in range(layers)])


def gemma(config: Settings) -> Values:
    """gemma2, gemma3_text: windows and, in gemma3, rotary positions by the kind of layer."""
    config.must_be("use_bidirectional_attention", None, False)
    base = base_of(config, ("model.", ""), "embed_tokens.weight")
    head_dim, layers = _head_dim(config, base), _count(config, f"{base}layers.")
    if config.get("layer_types") is None:
        every = 2 if config.family == "gemma2" else config.get("sliding_window_pattern") or 6
        kinds = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]
    else:
        kinds = layer_kinds(config, layers)
    newer = config.family == "gemma3_text"
    by_kind = _gemma3_rope(config, head_dim) if newer else None
    turned = [by_kind[kind] if by_kind else rotary(config, stated_rope(config), head_dim) for kind in kinds]
    names = dict.fromkeys(name for one in turned for name in one)
    windows = [config.get("sliding_window") if kind == "sliding_attention" else None for kind in kinds]
    values, cap = _grouped(config, base, head_dim), config.get("final_logit_softcapping")
    scale = config.real("query_pre_attn_scalar") ** -0.5
    # gemma3 states a bound of scores too, which its code does not use.
    bound = None if newer else config.get("attn_logit_softcapping")
    capped = cap is not None and values["head"] == "lm_head"
    return {
        **values,
        "head_norms": newer,
        "of_head": "norm" if newer else "heads",
        "rotary": settings(**{name: each([one.get(name) for one in turned]) for name in names}),
        "window": settings(scale=scale, window=each(windows), softcap=None if bound is None else float(bound)),
        "capped": capped,
        "softcap": float(cap) if capped else None,
        "output": "lm_head.capped" if capped else values["output"],
    }


def _gemma3_rope(config: Settings, head_dim: int) -> Mapping[str, Rope]:
    full, local = (stated_rope(config, kind) for kind in ("full_attention", "sliding_attention"))
    if not isinstance(config.get("rope_parameters"), Mapping):
        local = {"rope_theta": config.real("rope_local_base_freq")}
    elif local.get("rope_theta") is None or "sliding_attention" not in config.get("rope_parameters"):
        config.refuse("rope_parameters without sliding_attention")
    return {
        kind: {"stretch": 1.0, **rotary(config, rope, head_dim)}
        for kind, rope in (("full_attention", full), ("sliding_attention", local))
    }


def phi3(config: Settings) -> Values:
    """phi3: rows of one layer are cut by numbers of heads."""
    base = base_of(config, ("model.", ""), "embed_tokens.weight")
    head_dim = _head_dim(config, base)
    rope = stated_rope(config)
    if (rope.get("rope_type") or rope.get("type")) in ("su", "yarn"):  # names of old for the same
        rope["rope_type"] = "longrope"
    heads = config.whole("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    return {
        **_grouped(config, base, head_dim),
        "q_rows": heads * head_dim,
        "kv_rows": kv_heads * head_dim,
        "rotary": settings(**rotary(config, rope, head_dim)),
        "window": settings(window=config.get("sliding_window")),
    }


def gpt2(config: Settings) -> Values:
    """gpt2."""
    config.must_be("scale_attn_weights", True)
    config.must_be("scale_attn_by_inverse_layer_idx", False)
    config.must_be("add_cross_attention", False)
    base = base_of(config, ("transformer.", ""), "wte.weight")
    tokens, units = config.shape(f"{base}wte.weight")
    return {
        "base": base,
        "tokens": tokens,
        "units": units,
        "head_dim": head_dim_of(config, units, "n_head"),
        "eps": config.real("layer_norm_epsilon"),
        "activation": activation(config, "activation_function"),
        **head_of(config, base, f"{base}wte.weight").values(f"{base}ln_f"),
    }


def gpt_neox(config: Settings) -> Values:
    """gpt_neox: a part of each head is turned."""
    base = base_of(config, ("gpt_neox.", ""), "embed_in.weight")
    tokens, units = config.shape(f"{base}embed_in.weight")
    head_dim = head_dim_of(config, units, "num_attention_heads")
    rope = stated_rope(config)
    for new, old in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if rope.get(new) is None:
            rope[new] = config.get(old)
    turned = rotary(config, rope, head_dim)
    name = "embed_out" if "embed_out.weight" in config.tensors else "lm_head"
    nested = isinstance(config.get("rope_parameters"), Mapping)
    return {
        "base": base,
        "tokens": tokens,
        "head_dim": head_dim,
        "three": 3 * head_dim,
        "eps": config.real("layer_norm_eps"),
        "activation": activation(config, "hidden_act"),
        "rotary": settings(**turned),
        "partial": turned.get("rotated") is not None,
        "rotary_share": "rope_parameters.partial_rotary_factor" if nested else "rotary_pct",
        "mlp_reads": "in" if config.get("use_parallel_residual") else "attention.sum",
        **head_of(config, base, f"{base}embed_in.weight", name).values(f"{base}final_layer_norm"),
    }


def opt(config: Settings) -> Values:
    """opt: of the kind that normalises first, with embeddings as wide as the model."""
    config.must_be("do_layer_norm_before", True)
    config.must_be("_remove_final_layer_norm", False)
    base = base_of(config, ("model.decoder.", "decoder."), "embed_tokens.weight")
    tokens, units = config.shape(f"{base}embed_tokens.weight")
    config.must_be("word_embed_proj_dim", None, config.whole("hidden_size"))
    return {
        "base": base,
        "tokens": tokens,
        "head_dim": head_dim_of(config, units, "num_attention_heads"),
        "activation": activation(config, "activation_function"),
        **head_of(config, base.removeprefix("decoder."), f"{base}embed_tokens.weight").values(
            f"{base}final_layer_norm"
        ),
    }
