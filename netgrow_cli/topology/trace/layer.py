"""A layer on its way into a spec."""

from __future__ import annotations

import dataclasses
from typing import Any

from netgrow_cli.frozen import frozen


@frozen
class Layer:
    """One layer: what the spec will say of it.

    inputs: references as a spec writes them, `name` or `name[1]`. source: file and line in the model's code.
    code: by setting, the attribute of a module that holds its number.
    shapes: of the inputs in the trace, where they are known.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: str | None = None
    code: dict[str, str] = dataclasses.field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()
