"""`repeat:` in a spec: blocks such as `model.layers.{i}`, written once and unrolled here.

layers:
  embed: {op: embedding, from: tokens}
  "model.layers.{i}":
    repeat: auto            # counted in the checkpoint; or a number
    start: 0                # the number of the first block, 0 where it is left out
    from: embed             # what `in` is in the first block; afterwards the block before
    layers:
      norm: {op: rms_norm, from: in}
      attn: {op: attention, from: [q, k, v], window: {each: [16, null]}}    # one for each block
      ...
    output: sum             # what the next block, and readers of `model.layers.{i}`, get
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Mark
from netgrow_cli.topology.located import MOST_NODES, Located

_NEEDED = ("repeat", "from", "layers", "output")
_KEYS = (*_NEEDED, "start")
MOST_BLOCKS = 10_000


@frozen
class Block:
    """One layer after unrolling: full name, body, place, and the blocks it is in, outermost first."""

    name: str
    body: Located
    mark: Mark
    scope: tuple[str, ...] = ()


def expand_blocks(layers: Located, tensors: Sequence[str]) -> tuple[list[Block], dict[str, str]]:
    """All layers, blocks unrolled, and by name what stands for another value: block inputs and ends."""
    plain: list[Block] = []
    stands_for: dict[str, str] = {}
    for name, body in layers.value.items():
        mark = layers.keys[name]
        if isinstance(body.value, dict) and "repeat" in body.value:
            plain.extend(_unroll(name, body, mark, tensors, stands_for))
        else:
            plain.append(Block(name, body, mark))
        if len(plain) > MOST_NODES:
            raise SpecError(f"{mark}: more than {MOST_NODES} layers, blocks unrolled")
    return plain, stands_for


def _unroll(name: str, body: Located, mark: Mark, tensors: Sequence[str], stands_for: dict[str, str]) -> list[Block]:
    _check(name, body, mark)
    numbers = _numbers(name, body.value, tensors)
    before = str(body.value["from"].value)
    output = str(body.value["output"].value)
    blocks: list[Block] = []
    inside = [(inner, item, body.value["layers"].keys[inner]) for inner, item in body.value["layers"].value.items()]
    differ = {inner for inner, item, _ in inside if _differs(item)}
    if len(numbers) * len(body.value["layers"].value) > MOST_NODES:
        raise SpecError(f"{mark}: block {name!r} unrolls to more than {MOST_NODES} layers")
    for index in numbers:
        full = name.replace("{i}", str(index))
        stands_for[f"{full}.in"] = stands_for.get(before, before)
        for inner, item, place in inside:
            if inner in differ:
                item = _numbered(_own(item, index - numbers.start, len(numbers)), str(index))
            blocks.append(Block(f"{full}.{inner}", item, place, (full,)))
        before = f"{full}.{output}"
    end = stands_for.get(before, before)
    stands_for[name] = stands_for[name.replace(".{i}", "")] = end
    return blocks


def _differs(body: Located) -> bool:
    """Whether something in a layer is not the same in every block; most layers are one object in all of them."""
    value = body.value
    if isinstance(value, dict):
        return "each" in value or any(map(_differs, value.values()))
    if isinstance(value, list):
        return any(map(_differs, value))
    return isinstance(value, str) and "{i}" in value


def _own(body: Located, place: int, count: int) -> Located:
    """A layer of one block: of settings that are stated for `each` block, its own."""
    if not isinstance(body.value, dict):
        return body
    settings = dict(body.value)
    for key, item in body.value.items():
        if isinstance(item.value, dict) and set(item.value) == {"each"} and isinstance(item.value["each"].value, list):
            items = item.value["each"].value
            if len(items) != count:
                raise SpecError(f"{item.mark}: `{key}: {{each: ...}}` has {len(items)} values for {count} blocks")
            settings[key] = items[place]
    return dataclasses.replace(body, value=settings)


def _numbered(body: Located, index: str) -> Located:
    """A layer of one block: `{i}` in names of tensors and of layers is the block's number."""
    value = body.value
    if isinstance(value, str) and "{i}" in value:
        return dataclasses.replace(body, value=value.replace("{i}", index))
    if isinstance(value, dict):
        return dataclasses.replace(body, value={key: _numbered(item, index) for key, item in value.items()})
    if isinstance(value, list):
        return dataclasses.replace(body, value=[_numbered(item, index) for item in value])
    return body


def _check(name: str, body: Located, mark: Mark) -> None:
    if "{i}" not in name:
        raise SpecError(f"{mark}: block {name!r} has `repeat:`; its name needs {{i}}, as in 'layers.{{i}}'")
    for key in body.value:
        if key not in _KEYS:
            raise SpecError(f"{body.keys[key]}: block {name!r} has {', '.join(_KEYS)}, not {key!r}")
    for key in _NEEDED:
        if key not in body.value:
            raise SpecError(f"{mark}: block {name!r} lacks `{key}:`")
    if not isinstance(body.value["layers"].value, dict):
        raise SpecError(f"{body.value['layers'].mark}: `layers:` of block {name!r} must be a mapping")
    for key in ("from", "output"):
        if not isinstance(body.value[key].value, str):
            raise SpecError(f"{body.value[key].mark}: `{key}:` of block {name!r} must name one layer")
    inside = body.value["layers"].value
    output = body.value["output"]
    if output.value not in inside:
        raise SpecError(f"{output.mark}: `output:` of block {name!r} names {output.value!r}, which is no layer of it")
    for inner, inner_body in inside.items():
        if isinstance(inner_body.value, dict) and "repeat" in inner_body.value:
            place = body.value["layers"].keys[inner]
            raise SpecError(f"{place}: block {inner!r} is inside block {name!r}; write the inner one out")


def _numbers(name: str, body: dict[str, Located], tensors: Sequence[str]) -> range:
    """The numbers of the blocks; where they are counted there may be none from `start` on."""
    given, stated = body["repeat"], body.get("start")
    start = 0 if stated is None or stated.value is None else stated.value
    if stated is not None and (not isinstance(start, int) or isinstance(start, bool) or not 0 <= start <= MOST_BLOCKS):
        raise SpecError(f"{stated.mark}: `start:` of {name!r} must be a number, found {stated.plain()!r}")
    if isinstance(given.value, int) and not isinstance(given.value, bool) and 0 < given.value <= MOST_BLOCKS:
        return range(start, start + given.value)
    if given.value != "auto":
        raise SpecError(f"{given.mark}: `repeat:` of {name!r} must be a number or auto, found {given.plain()!r}")
    before, _, after = name.partition("{i}")
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after) + r"\.")
    found = {int(match[1]) for tensor in tensors if (match := pattern.match(tensor))}
    if found != set(range(len(found))) or not found:
        raise SpecError(
            f"{given.mark}: the checkpoint's tensors do not count the blocks {name!r}: found {sorted(found)}"
        )
    return range(start, len(found))
