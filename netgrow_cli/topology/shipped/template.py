"""A shipped spec is a YAML file with `${name}` for what a configuration says, and lines that hold `# if flag` only."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(r"\$\{(\w+)\}")
_WHEN = re.compile(r"\s+# (if|unless) (\w+)$")


@functools.cache
def template(name: str) -> str:
    """The text of a file of this package."""
    return Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")


def fill(text: str, values: Mapping[str, object]) -> str:
    """The spec's text. Raises KeyError for a name without a value."""
    lines = []
    for line in text.splitlines():
        when = _WHEN.search(line)
        if when is not None:
            if bool(values[when[2]]) != (when[1] == "if"):
                continue
            line = line[: when.start()]
        lines.append(_NAME.sub(lambda found: written(values[found[1]]), line))
    return "\n".join(lines) + "\n"


def written(value: object) -> str:
    """A value in flow YAML; text stands as it is, since it may be a part of a name or of a layer."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float):
        return _real(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


def settings(**stated: Any) -> str:
    """Settings to be put behind those of a layer; None is left out, lists of one for each block become `each`."""
    return "".join(f", {key}: {written(value)}" for key, value in stated.items() if value is not None)


def each(values: list[Any]) -> Any:
    """A setting for all blocks, or one for each where they differ."""
    if all(value == values[0] for value in values):
        return values[0] if values else None
    return f"{{each: {written(values)}}}"


def _real(value: float) -> str:
    """A number that YAML 1.1 reads as one: `5e-06` would be a word there."""
    if not math.isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    mantissa, exponent, power = repr(value).partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{exponent}{power}"
