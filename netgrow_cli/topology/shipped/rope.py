"""Rotary positions as `config.json` states them, as settings of the `rotary` operation.

In two spellings: `rope_parameters` (with one set for each kind of layer, or one for all), and before it
`rope_theta` with `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from netgrow_cli.topology.shipped.settings import Settings

Rope = dict[str, Any]


def stated_rope(config: Settings, kind: str | None = None) -> Rope:
    """The parameters in one spelling. kind: of layers, where there may be a set for each."""
    given = config.get("rope_parameters")
    new = dict(given) if isinstance(given, Mapping) else {}
    if kind is not None and isinstance(new.get(kind), Mapping):
        new = dict(new[kind])
    old = config.get("rope_scaling")
    found = {**(old if isinstance(old, Mapping) else {}), **new}
    for key in ("rope_theta", "partial_rotary_factor"):
        if found.get(key) is None and config.get(key) is not None:
            found[key] = config.get(key)
    return found


def rotary(config: Settings, rope: Rope, head_dim: int, *, partial: float = 1.0) -> dict[str, Any]:
    """Settings of `rotary`. partial: the share of a head that is turned, where nothing is stated."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    turned = int(head_dim * _number(config, rope, "partial_rotary_factor", partial))
    if turned < 2 or turned % 2:
        config.refuse(f"{turned} of {head_dim} indices of a head are rotary")
    base = {"theta": _number(config, rope, "rope_theta", 10000.0), "rotated": turned if turned < head_dim else None}
    make = _TYPES.get(kind)
    if make is None:
        config.refuse(f"rope type {kind!r}")
    return {**base, **make(config, rope, _powers(base["theta"] or 1.0, turned))}


def _number(config: Settings, rope: Rope, key: str, default: float | None = None) -> float:
    value = rope.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        config.refuse(f"{key} of its rotary positions is {value!r}")
    return float(value)


def _powers(theta: float, turned: int) -> list[float]:
    return [float(theta ** -(index / turned)) for index in range(0, turned, 2)]


def _default(config: Settings, rope: Rope, plain: list[float]) -> Rope:
    return {}


def _linear(config: Settings, rope: Rope, plain: list[float]) -> Rope:
    return {"stretch": _number(config, rope, "factor")}


def _length(config: Settings, rope: Rope) -> float:
    """The length that a model was trained on first."""
    outside = config.get("original_max_position_embeddings")
    if outside is not None:
        return float(outside)
    return _number(config, rope, "original_max_position_embeddings", config.get("max_position_embeddings"))


def _llama3(config: Settings, rope: Rope, plain: list[float]) -> Rope:
    factor, length = _number(config, rope, "factor"), _length(config, rope)
    low, high = (_number(config, rope, f"{end}_freq_factor") for end in ("low", "high"))

    def changed(frequency: float) -> float:
        wave = 2 * math.pi / frequency
        if wave < length / high:
            return frequency
        if wave > length / low:
            return frequency / factor
        smooth = (length / wave - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    return {"theta": None, "frequencies": [changed(frequency) for frequency in plain]}


def _yarn(config: Settings, rope: Rope, plain: list[float]) -> Rope:
    length, pairs = _length(config, rope), len(plain)
    factor = _number(config, rope, "factor")
    theta = _number(config, rope, "rope_theta", 10000.0)
    fast, slow = (_number(config, rope, f"beta_{name}", value) for name, value in (("fast", 32.0), ("slow", 1.0)))

    def index(turns: float) -> float:
        return 2 * pairs * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index(fast), index(slow)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    last = last + 0.001 if first == last else last
    ramp = [min(max((place - first) / (last - first), 0.0), 1.0) for place in range(pairs)]
    frequencies = [f / factor * share + f * (1 - share) for f, share in zip(plain, ramp, strict=True)]
    return {"theta": None, "frequencies": frequencies, "amplitude": _yarn_amplitude(config, rope, factor)}


def _yarn_amplitude(config: Settings, rope: Rope, factor: float) -> float:
    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        return _number(config, rope, "attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return grown(_number(config, rope, "mscale")) / grown(_number(config, rope, "mscale_all_dim"))
    return grown(1.0)


def _longrope(config: Settings, rope: Rope, plain: list[float]) -> Rope:
    length = _length(config, rope)
    factor = _number(config, rope, "factor", config.real("max_position_embeddings") / length)
    amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    found: Rope = {"theta": None, "amplitude": _number(config, rope, "attention_factor", amplitude)}
    for name, key in (("frequencies", "short_factor"), ("long_frequencies", "long_factor")):
        factors = rope.get(key)
        if not isinstance(factors, list) or len(factors) != len(plain):
            config.refuse(f"{key} of its rotary positions should be a list of {len(plain)} numbers")
        found[name] = [frequency / float(by) for frequency, by in zip(plain, factors, strict=True)]
    return {**found, "longer_than": int(length)}


_TYPES = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
