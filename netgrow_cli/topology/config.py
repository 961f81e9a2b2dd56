"""`config:` in a spec: which keys of a model's configuration (`config.json`) follow its sizes.

config:
  hidden_size: embed.weight[1]                      # an axis of a tensor, or of a layer's output
  heads: "layers.{i}.attn.q_heads[2]"               # all blocks must agree
  eps: ["layers.{i}.norm.eps", final.eps]           # a setting of a layer; all places must agree
  head_dim: {at: "layers.{i}.attn.q_heads[3]", default: hidden_size / heads}   # what it is where the file is silent
  vision.width: dims.width                          # a nested key; one of `dims`
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Mark
from netgrow_cli.topology.located import Located

_SETTINGS = ("at", "default", "multiple_of")
_STEP = re.compile(r"\s+([*/])\s+")
_NUMBER = re.compile(r"\d+(\.\d+)?")

Number = int | float


@frozen
class Expression:
    """Words and numbers, multiplied and divided from left to right: `hidden_size / heads`."""

    text: str

    @property
    def words(self) -> tuple[str, ...]:
        """What stands for a value, in order."""
        return tuple(term for term in _STEP.split(self.text)[::2] if not _NUMBER.fullmatch(term))

    def value(self, of: Callable[[str], Number]) -> Number:
        """The value, given those of its words; a whole number where it is one. Raises ZeroDivisionError."""
        first, *more = _STEP.split(self.text)
        total = _term(first, of)
        for step, term in zip(more[::2], more[1::2], strict=True):
            total = total * _term(term, of) if step == "*" else total / _term(term, of)
        return int(total) if isinstance(total, float) and more and total.is_integer() else total


def _term(term: str, of: Callable[[str], Number]) -> Number:
    if not _NUMBER.fullmatch(term):
        return of(term)
    return float(term) if "." in term else int(term)


@frozen
class ConfigKey:
    """One key, dots for nesting.

    at: where its value is found, which must be the same everywhere. default: what it is, in terms of other keys,
    where the file does not state it. multiple_of: a key whose multiple its value has to be.
    """

    key: str
    at: tuple[Expression, ...]
    default: Expression | None
    multiple_of: str | None
    mark: Mark


def parse_config(given: Located | None) -> tuple[ConfigKey, ...]:
    """The keys. Raises SpecError."""
    if given is None or given.value is None:
        return ()
    if not isinstance(given.value, dict):
        raise SpecError(
            f"{given.mark}: `config:` must map keys of config.json to places, as in hidden_size: fc.weight[1]"
        )
    return tuple(_key(key, item, given.keys[key]) for key, item in given.value.items())


def _key(key: str, item: Located, mark: Mark) -> ConfigKey:
    settings = item.value if isinstance(item.value, dict) else {"at": item}
    unknown = next((name for name in settings if name not in _SETTINGS), None)
    if unknown is not None:
        _fail(item.keys[unknown], key, f"it takes {', '.join(_SETTINGS)}, not {unknown!r}")
    if "at" not in settings:
        _fail(mark, key, "it lacks `at:`, which says where its value is found")
    places = settings["at"].value if isinstance(settings["at"].value, list) else [settings["at"]]
    for place in places:
        if not isinstance(place.value, str) or not place.value.strip():
            _fail(place.mark, key, f"a place is text, as in fc.weight[0] or norm.eps, found {place.plain()!r}")
    if not places:
        _fail(mark, key, "`at:` names no place")
    default, multiple = (settings[name].plain() if name in settings else None for name in _SETTINGS[1:])
    if multiple is not None and not isinstance(multiple, str):
        _fail(mark, key, f"`multiple_of:` names another key, found {multiple!r}")
    return ConfigKey(
        key=key,
        at=tuple(Expression(place.value.strip()) for place in places),
        default=None if default is None else Expression(str(default).strip()),
        multiple_of=multiple,
        mark=mark,
    )


def _fail(mark: Mark, key: str, message: str) -> NoReturn:
    raise SpecError(f"{mark}: config: {key}: {message}")
