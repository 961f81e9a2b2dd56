"""The text of a traced spec: one line a layer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.trace.inputs import Given
from netgrow_cli.topology.trace.layer import Layer

_PLAIN = re.compile(r"[A-Za-z][\w./~-]*", re.ASCII)
_NO_TEXT = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
"""Words that YAML 1.1 reads as something else than text."""

# Layers whose numbers stand in the model's code.
_WITH_SOURCE = ("reshape", "slice", "split", "chunk", "expand", "group_norm", "layer_norm", "rms_norm", "aten")


def spec_text(
    inputs: Sequence[tuple[str, Given]],
    layers: Sequence[Layer],
    outputs: Sequence[str],
    *,
    tensors: Collection[str],
    fixed_batch: bool,
    origin: str,
) -> str:
    """The spec. tensors: names in the checkpoint. fixed_batch: whether some operation is bound to the traced batch."""
    lines = [f"# Traced from {origin}.", "netgrow: 1", "inputs:"]
    lines += [f"  {_word(name)}: {_input(given, fixed_batch)}" for name, given in inputs]
    lines.append("layers:")
    lines += [f"  {_word(layer.name)}: {_layer(layer, tensors)}" for layer in layers]
    lines.append(f"outputs: [{', '.join(_word(ref) for ref in outputs)}]")
    return "\n".join(lines) + "\n"


def _input(given: Given, fixed_batch: bool) -> str:
    shape: list[Any] = list(given.shape)
    if shape and not fixed_batch:
        shape[0] = "batch"
    text = ", ".join(str(size) for size in shape)
    if given.dtype == "float32":
        return f"[{text}]"
    high = f", high: {given.high}" if given.high is not None else ""
    return f"{{shape: [{text}], dtype: {given.dtype}{high}}}"


def _layer(layer: Layer, tensors: Collection[str]) -> str:
    parts = [f"op: {layer.op}"]
    if len(layer.inputs) == 1:
        parts.append(f"from: {_word(layer.inputs[0])}")
    elif layer.inputs:
        parts.append(f"from: [{', '.join(_word(ref) for ref in layer.inputs)}]")
    odd: dict[str, str | None] = {role: name for role, name in layer.params.items() if name != f"{layer.name}.{role}"}
    # A parameter that has the default name and is not used here would be found otherwise.
    unused = [p.name for p in OPS[layer.op].params if p.name not in layer.params]
    odd.update({role: None for role in unused if f"{layer.name}.{role}" in tensors})
    if odd:
        parts.append(f"params: {_value(odd)}")
    parts += [f"{key}: {_value(value)}" for key, value in layer.attrs.items()]
    if layer.source is not None and (layer.op in _WITH_SOURCE or "groups" in layer.attrs):
        parts.append(f"source: {_word(layer.source)}")
    if layer.code:
        parts.append(f"code: {_value(layer.code)}")
    return "{" + ", ".join(parts) + "}"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _word(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_word(key)}: {_value(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(_value(item) for item in value) + "]"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    mantissa, exponent, power = repr(value).partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{exponent}{power}"


def _word(text: str) -> str:
    """A text as YAML reads it back."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NO_TEXT:
        return text
    return json.dumps(text)
