"""What the templates of encoders need to know of a `config.json`: bert, roberta, vit."""

from __future__ import annotations

from typing import Any

from netgrow_cli.topology.shipped.decoders import Values, activation, base_of, head_dim_of
from netgrow_cli.topology.shipped.settings import Settings
from netgrow_cli.topology.shipped.template import settings

# Names of one block's layers: in checkpoints of old, and since transformers 5.
_VIT_OLD = {
    "layer": "encoder.layer",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_VIT_NEW = {
    "layer": "layers",
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "out": "attention.o_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def bert(config: Settings) -> Values:
    """bert and roberta, with the head that the checkpoint's tensors show."""
    for key in ("is_decoder", "add_cross_attention"):
        config.must_be(key, False)
    config.must_be("position_embedding_type", None, "absolute")
    family, tensors = config.family, config.tensors
    base = base_of(config, (f"{family}.", ""), "embeddings.word_embeddings.weight")
    embedding = f"{base}embeddings.word_embeddings.weight"
    tokens, units = config.shape(embedding)
    act = activation(config, "hidden_act")
    old = f"{base}embeddings.LayerNorm.gamma" in tensors
    lm = "cls.predictions.transform" if family == "bert" else "lm_head"
    decoder = "cls.predictions.decoder" if family == "bert" else "lm_head.decoder"
    biases = (f"{decoder}.bias", "cls.predictions.bias" if family == "bert" else "lm_head.bias")
    pooler = f"{base}pooler.dense.weight" in tensors
    flags = {
        "pooler": pooler,
        "lm": f"{lm}.dense.weight" in tensors,
        "next_sentence": "cls.seq_relationship.weight" in tensors,
        "dense_classifier": "classifier.dense.weight" in tensors,
        "classifier": "classifier.weight" in tensors,
        "spans": "qa_outputs.weight" in tensors,
    }
    last = f'"{base}encoder.layer.{{i}}"'
    outputs = _outputs(flags, decoder, f"{base}pooler.activation", last)
    padding = config.get("pad_token_id") if family == "roberta" else None
    if family == "roberta" and not isinstance(padding, int):
        config.refuse("pad_token_id is null")
    return {
        "base": base,
        "family": family,
        "tokens": tokens,
        "head_dim": head_dim_of(config, units, "num_attention_heads"),
        "eps": config.real("layer_norm_eps"),
        "activation": act,
        "positions": settings(start=None if padding is None else padding + 1, skip=padding),
        "gain": "gamma" if old else "weight",
        "shift": "beta" if old else "bias",
        "lm_activation": act if family == "bert" else "gelu",
        "lm_norm": "LayerNorm" if family == "bert" else "layer_norm",
        "decoder": decoder,
        "decoder_weight": f"{decoder}.weight" if f"{decoder}.weight" in tensors else embedding,
        "decoder_bias": next((name for name in biases if name in tensors), None),
        "classifier_reads": f"{base}pooler.activation" if pooler else last,
        **flags,
        "lm": lm if flags["lm"] else "",
        "outputs": f"[{', '.join(outputs)}]",
    }


def _outputs(flags: dict[str, bool], decoder: str, pooled: str, last: str) -> list[str]:
    """What the model returns: of its heads those that there are, else the last block and the pooler."""
    heads = {
        "lm": decoder,
        "next_sentence": "cls.seq_relationship",
        "dense_classifier": "classifier.out_proj",
        "classifier": "classifier",
        "spans": "qa_outputs",
    }
    found = [name for flag, name in heads.items() if flags[flag]]
    unread = flags["pooler"] and not (flags["next_sentence"] or flags["classifier"])
    return [*(found or [last]), *([pooled] if unread else [])]


def vit(config: Settings) -> Values:
    """vit, for a classifier or without."""
    tensors = config.tensors
    base = base_of(config, ("vit.", ""), "embeddings.cls_token")
    names = _VIT_NEW if f"{base}layers.0.attention.q_proj.weight" in tensors else _VIT_OLD
    units, channels, *_ = config.shape(f"{base}embeddings.patch_embeddings.projection.weight")
    height, width = _pair(config, "image_size")
    classifier, pooler = "classifier.weight" in tensors, f"{base}pooler.dense.weight" in tensors
    outputs = ["classifier"] if classifier else [f"{base}layernorm"]
    outputs += [f"{base}pooler.activation"] if pooler else []
    return {
        "base": base,
        **names,
        "channels": channels,
        "height": height,
        "width": width,
        "patch": list(_pair(config, "patch_size")),
        "head_dim": head_dim_of(config, units, "num_attention_heads"),
        "eps": config.real("layer_norm_eps"),
        "activation": activation(config, "hidden_act"),
        "pooler_activation": activation(config, "pooler_act") if pooler else None,
        "classifier": classifier,
        "pooler": pooler,
        "first": classifier or pooler,
        "outputs": f"[{', '.join(outputs)}]",
    }


def _pair(config: Settings, key: str) -> tuple[int, int]:
    value: Any = config.get(key)
    pair = value if isinstance(value, (list, tuple)) else [value, value]
    if len(pair) != 2 or not all(isinstance(item, int) and item > 0 for item in pair):
        config.refuse(f"{key} is {value!r}")
    return pair[0], pair[1]
