"""Llama-shaped checkpoints for benchmarks: shapes and `config.json`, as files without data or with random weights.

A file without data is sparse: a header, and a hole as long as its tensors. Enough for whatever reads headers only.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

INDEX = "model.safetensors.index.json"
BYTES = 2
"""Of one number in bf16."""


@dataclasses.dataclass(frozen=True)
class Llama:
    """The sizes of a Llama."""

    layers: int
    hidden: int = 2048
    intermediate: int = 8192
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 32000

    @classmethod
    def of_bytes(cls, size: int) -> Llama:
        """One with as many layers as come nearest to a size in bytes."""
        one, two = cls(1).bytes, cls(2).bytes
        return cls(max(1, round((size - one) / (two - one)) + 1))

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(BYTES * math.prod(shape) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors, in the order of the model."""
        kv = self.hidden // self.heads * self.kv_heads
        block = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocab, self.hidden)}

    def config(self) -> dict[str, object]:
        """What `config.json` holds."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


LLAMA_70B = Llama(80, 8192, 28672, 64, 8, 128256)


def header(shapes: Mapping[str, Sequence[int]]) -> bytes:
    """The beginning of a safetensors file with these tensors in bf16, as the library writes it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        start, end = end, end + BYTES * math.prod(shapes[name])
        entries[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shards(shapes: Mapping[str, Sequence[int]], most: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors in files of at most so many bytes each, as transformers divides them."""
    found: dict[str, tuple[int, ...]] = {}
    held = 0
    for name, shape in shapes.items():
        size = BYTES * math.prod(shape)
        if found and held + size > most:
            yield found
            found, held = {}, 0
        found[name] = tuple(shape)
        held += size
    if found:
        yield found


def write_sparse(model: Llama, folder: Path, shard_size: int | None = 10**9) -> Path:
    """A checkpoint without data in a folder: `model.safetensors`, or with a shard size its shards and their index.

    Returns what a command is given: the file, or the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2))
    if shard_size is None:
        return _sparse(folder / "model.safetensors", model.shapes())
    parts = list(shards(model.shapes(), shard_size))
    names = [shard_name(number, len(parts)) for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        _sparse(folder / name, part)
    write_index(folder, dict(zip(names, parts, strict=True)))
    return folder


def shard_name(number: int, count: int) -> str:
    """As transformers calls them."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, files: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """`model.safetensors.index.json`."""
    total = sum(BYTES * math.prod(shape) for part in files.values() for shape in part.values())
    where = {tensor: name for name, part in files.items() for tensor in part}
    text = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(text, indent=2))


def _sparse(path: Path, shapes: Mapping[str, Sequence[int]]) -> Path:
    first = header(shapes)
    with path.open("wb") as file:
        file.write(first)
        file.truncate(len(first) + sum(BYTES * math.prod(shape) for shape in shapes.values()))
    return path


# -- with random weights ---------------------------------------------------------------------------------

BLOCK = 1 << 24
ONE = 0x3F80
"""1.0 in bf16."""


def write_random(model: Llama, folder: Path, shard_size: int = 10**9, seed: int = 0) -> Path:
    """A checkpoint with random weights, in shards, as transformers loads it; written in blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    parts = list(shards(model.shapes(), shard_size))
    names = [shard_name(number, len(parts)) for number in range(1, len(parts) + 1)]
    for number, (name, part) in enumerate(zip(names, parts, strict=True)):
        with (folder / name).open("wb") as file:
            file.write(header(part))
            for tensor in sorted(part):
                for block in _values(part[tensor], seed + number, "norm" in tensor):
                    file.write(block)
    write_index(folder, dict(zip(names, parts, strict=True)))
    return folder


def _values(shape: Sequence[int], seed: int, is_gain: bool) -> Iterator[bytes]:
    """Gains of 1; weights of either sign between 2^-11 and 2^-7, as bf16."""
    import numpy as np

    generator = np.random.default_rng([seed, *shape])
    left = math.prod(shape)
    while left > 0:
        count = min(left, BLOCK)
        if is_gain:
            bits = np.full(count, ONE, np.uint16)
        else:
            bits = np.frombuffer(generator.bytes(BYTES * count), np.uint16) & 0x81FF | 0x3A00
        yield bits.astype("<u2").tobytes()
        left -= count
