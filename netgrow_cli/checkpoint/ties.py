"""Heads of language models that are the embedding, written a second time.

With `tie_word_embeddings` a head is left out of the file, as the library takes the embedding for it. Older files hold
both. They load as one tensor only while they are equal, so that is what is asked for here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netgrow_cli.checkpoint.positioned import read_at
from netgrow_cli.checkpoint.types import Checkpoint, TensorInfo

_HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight", "lm_head.decoder.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "embeddings.word_embeddings.weight")
_FIRST = 1 << 12


def equal_heads(checkpoint: Checkpoint) -> dict[str, str]:
    """Which of a head and an embedding, equal bit for bit, is the other: by the later name, the earlier one.

    Where config.json says that they are not tied, they are equal by chance.
    """
    infos = checkpoint.tensors
    heads = [name for name in _HEADS if name in infos and infos[name].tied_to is None]
    embeddings = [name for name in infos if name.endswith(_EMBEDDINGS) and infos[name].tied_to is None]
    pairs = [(head, one) for head in heads for one in embeddings if _alike(infos[head], infos[one])]
    if not pairs or _config(checkpoint.path).get("tie_word_embeddings") is False:
        return {}
    order = {name: place for place, name in enumerate(infos)}
    same = [sorted(pair, key=order.__getitem__) for pair in pairs if _same_values(checkpoint, *pair)]
    return {later: earlier for earlier, later in same}


def _alike(a: TensorInfo, b: TensorInfo) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _same_values(checkpoint: Checkpoint, a: str, b: str) -> bool:
    one, other = checkpoint.region(a), checkpoint.region(b)
    if one is not None and other is not None:
        # Two tensors that were trained apart differ at once; then nothing else is read.
        count = min(_FIRST, one.size)
        if read_at(one.fd, one.start, count) != read_at(other.fd, other.start, count):
            return False
    return checkpoint.read_bytes(a) == checkpoint.read_bytes(b)


def _config(folder: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}
