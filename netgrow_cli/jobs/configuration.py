"""The `config.json` beside a checkpoint, after a change: which keys follow, from what to what, and whether one can.

What a key holds is said by the spec's `config:`. A configuration has one number for all layers; where these come to
differ there is none for the result, which is said: the checkpoint is right, but no model of the family loads it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.topology.config import ConfigKey, Expression, Number
from netgrow_cli.topology.graph import Node
from netgrow_cli.topology.layout import new_size
from netgrow_cli.topology.ops import OPS
from netgrow_cli.topology.shipped.settings import config_path, read_config
from netgrow_cli.topology.solve import Topology
from netgrow_cli.topology.spec import Spec

_AXIS = re.compile(r"(?P<name>.+)\[(?P<axis>\d+)\]")


@frozen
class ConfigChange:
    """One key, dots for nesting; before is None where the file did not state it."""

    key: str
    before: Number | None
    after: Number


@frozen
class Configuration:
    """What becomes of a configuration.

    path: the file as it is. output: where the new one goes, if anything changes. changes: of its keys. warnings: why no
    configuration fits the result. text: the new file.
    """

    path: Path
    output: Path
    changes: tuple[ConfigChange, ...]
    warnings: tuple[str, ...]
    text: str

    @property
    def whole(self) -> bool:
        """Whether the configuration says all that the model's code needs."""
        return not self.warnings

    @property
    def stale(self) -> Path | None:
        """A file of that name from an earlier output, which is nothing to this one."""
        own = self.output.name != "config.json" and not self.changes
        return self.output if own and self.output.exists() else None

    def as_json(self) -> list[dict[str, Any]]:
        """For the JSON report."""
        return [dataclasses.asdict(change) for change in self.changes]


def follow(spec: Spec, topology: Topology, plan: Plan, checkpoint: Path, output: Path) -> Configuration | None:
    """The configuration after a plan; None where there is no file, or the spec says nothing of it."""
    path = config_path(checkpoint)
    if path is None or not spec.config:
        return None
    stated = read_config(path)
    before, after = _Values(topology, None), _Values(topology, plan)
    changes, warnings = [], []
    old, new = dict(before.all(spec.config)), dict(after.all(spec.config))
    for key in spec.config:
        if key.key not in new:
            warnings.append(_apart(key, after, path))
        elif (change := _change(key, stated, old, new)) is not None:
            changes.append(change)
    if warnings:  # what a file that does not fit says of other keys helps nobody
        changes = []
    known = {key.key: _stated(stated, key.key) for key in spec.config} | new
    warnings += [text for key in spec.config if (text := _no_multiple(key, known, old))]
    warnings += _without_key(spec.config, plan, before, path)
    document = json.loads(json.dumps(stated))
    for change in changes:
        _put(document, change.key, change.after)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return Configuration(path, output_path(checkpoint, output), tuple(changes), tuple(warnings), text)


def require_fit(spec: Spec, topology: Topology, checkpoint: Path) -> None:
    """A configuration that speaks of other sizes is not this checkpoint's. Raises SpecError."""
    path = config_path(checkpoint)
    if path is None:
        return
    stated = read_config(path)
    for key, value in _Values(topology, None).all(spec.config).items():
        said = _stated(stated, key)
        if isinstance(said, (int, float)) and said != value and isinstance(value, int):
            hint = "" if checkpoint.is_dir() else f"put the right one beside it as {checkpoint.stem}.config.json, or "
            raise SpecError(
                f"{path}: {key} is {said}, but the checkpoint has {value}: it is not the configuration of "
                f"{checkpoint.name}; {hint}pass --spec"
            )


def output_path(checkpoint: Path, output: Path) -> Path:
    """Where the new configuration goes: never over one that may be another checkpoint's.

    In a folder it takes the old one's place.
    """
    if checkpoint.is_dir():
        return output / "config.json"
    elsewhere = output.parent.resolve() != checkpoint.parent.resolve()
    if elsewhere and not (output.parent / "config.json").exists():
        return output.parent / "config.json"
    return output.with_name(f"{output.stem}.config.json")


# -- values ----------------------------------------------------------------------------------------------


class _Values:
    """What the places of a spec's `config:` hold, before a plan (None) or after it."""

    def __init__(self, topology: Topology, plan: Plan | None) -> None:
        self._topology = topology
        self._sizes = plan.sizes if plan is not None else {}
        self._nodes = {node.name: node for node in topology.graph.nodes}
        self._settings = {(change.node, change.what): change.value for change in plan.spec} if plan is not None else {}

    def all(self, keys: tuple[ConfigKey, ...]) -> Mapping[str, Number]:
        """By key, the value that all of its places agree on."""
        values = {key.key: set(self.places(key).values()) for key in keys}
        return {key: next(iter(found)) for key, found in values.items() if len(found) == 1}

    def places(self, key: ConfigKey) -> dict[tuple[str, int | None], Number]:
        """By expression and block, the values of a key. Raises SpecError where a place does not exist."""
        found: dict[tuple[str, int | None], Number] = {}
        for expression in key.at:
            blocks = self._blocks(expression)
            if not blocks:
                raise SpecError(f"{key.mark}: config: {key.key}: there is no {expression.text!r} in the network")
            for block in blocks:
                values = {word: self._value(_numbered(word, block)) for word in expression.words}
                found[expression.text, block] = expression.value(values.__getitem__)
        return found

    def _blocks(self, expression: Expression) -> list[int | None]:
        """The numbers that `{i}` stands for; [None] where there is none."""
        if all("{i}" not in word for word in expression.words):
            return [None] if all(self._has(word) for word in expression.words) else []
        found: list[int | None] = []
        while all(self._has(_numbered(word, len(found))) for word in expression.words):
            found.append(len(found))
        return found

    def _has(self, place: str) -> bool:
        return self._lookup(place) is not None

    def _value(self, place: str) -> Number:
        value = self._lookup(place)
        assert value is not None
        return value

    def _lookup(self, place: str) -> Number | None:
        match = _AXIS.fullmatch(place)
        if match is not None:
            return self._axis(match["name"], int(match["axis"]))
        owner, _, setting = place.rpartition(".")
        if owner == "dims":
            return self._dim(setting)
        node = self._nodes.get(owner)
        if node is None or setting not in OPS[node.op].attrs:
            return None
        changed = self._settings.get((owner, setting))
        value = OPS[node.op].attr(node, setting) if changed is None else _number(changed)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def _axis(self, name: str, axis: int) -> Number | None:
        """The size of an axis of a tensor, or of a layer's output."""
        axes = self._topology.tensors.get(name)
        if axes is None and name in self._nodes:
            axes = self._topology.values[name][0].axes
        return new_size(axes[axis], self._sizes) if axes is not None and axis < len(axes) else None

    def _dim(self, name: str) -> Number | None:
        for (owner, what), value in self._settings.items():
            if _names(self._nodes[owner], what) == name:
                return _number(value)
        return self._topology.graph.dims.get(name)


def _names(node: Node, what: str) -> object:
    """What the spec states for a setting, or for one item of it: a name from `dims`, or a number."""
    match = _AXIS.fullmatch(what)
    stated = node.attrs.get(match["name"] if match else what)
    return stated[int(match["axis"])] if match and isinstance(stated, (list, tuple)) else stated


def _numbered(place: str, block: int | None) -> str:
    return place if block is None else place.replace("{i}", str(block))


def _number(text: str) -> Number:
    try:
        return int(text)
    except ValueError:
        return float(text)


# -- the file --------------------------------------------------------------------------------------------


def _stated(document: Mapping[str, Any], key: str) -> Any:
    found: Any = document
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _put(document: dict[str, Any], key: str, value: Number) -> None:
    *folders, last = key.split(".")
    for folder in folders:
        inner = document.get(folder)
        if not isinstance(inner, dict):
            inner = document[folder] = {}
        document = inner
    document[last] = value


def _change(
    key: ConfigKey, stated: Mapping[str, Any], old: Mapping[str, Number], new: Mapping[str, Number]
) -> ConfigChange | None:
    """What becomes of one key whose places agree."""
    said, after = _stated(stated, key.key), new[key.key]
    if said is None and key.default is not None:
        expected = _default(key.default, {**{k: _stated(stated, k) for k in key.default.words}, **new})
        return None if expected == after else ConfigChange(key.key, None, after)
    computed = any(len(place.words) > 1 for place in key.at)
    # Where the file is another's (of the checkpoint that this one came from), what it says is put right too.
    same = old.get(key.key) == after if said is None or computed else said == after
    return None if same else ConfigChange(key.key, said, after)


def _default(expression: Expression, known: Mapping[str, Any]) -> Number | None:
    if not all(isinstance(known.get(word), (int, float)) for word in expression.words):
        return None
    try:
        return expression.value(lambda word: known[word])
    except ZeroDivisionError:
        return None


# -- warnings ----------------------------------------------------------------------------------------------


def _apart(key: ConfigKey, values: _Values, path: Path) -> str:
    """One number for several that differ: which, where, and what to change too."""
    found = values.places(key)
    counts = collections.Counter(found.values())
    usual, times = counts.most_common(1)[0]
    texts = dict.fromkeys(text for text, _ in found)
    within = next((text for text in texts if len({value for (t, _), value in found.items() if t == text}) > 1), None)
    if within is None:
        listed = ", ".join(f"{next(v for (t, _), v in found.items() if t == text):g} for {text}" for text in texts)
        return f"{path.name} has one {key.key}, but the result has {listed}: no configuration fits it"
    rare = {n: v for (t, n), v in found.items() if t == within and v != usual}
    few = ", ".join(f"{value:g} in layer {number}" for number, value in list(rare.items())[:3])
    more = f" and {len(rare) - 3} more" if len(rare) > 3 else ""
    layer = within.split(" ")[0].partition("[")[0].removesuffix(".weight").replace("{i}", "*")
    hint = f"; change all: --layer '{layer}'" if "[" in within else ""
    return (
        f"{path.name} has one {key.key} for all layers: {few}{more}, {usual:g} in the others{hint}"
        if times > 1
        else f"{path.name} has one {key.key} for all layers: {few}{more}{hint}"
    )


def _no_multiple(key: ConfigKey, known: Mapping[str, Any], old: Mapping[str, Number]) -> str | None:
    value, of = known.get(key.key), known.get(key.multiple_of or "")
    if not isinstance(value, int) or not isinstance(of, int) or of == 0 or value % of == 0:
        return None
    if old.get(key.key) == value and old.get(str(key.multiple_of)) == of:
        return None
    return f"{key.key} {value} is no multiple of {key.multiple_of} {of}, which transformers asks for"


def _without_key(keys: tuple[ConfigKey, ...], plan: Plan, values: _Values, path: Path) -> list[str]:
    """Numbers other than sizes that must follow, and that no key holds."""
    held = {_numbered(text, block) for key in keys for text, block in values.places(key)}
    lost = [entry for entry in plan.code if entry.what == "eps" and f"{entry.layer}.eps" not in held]
    if not lost:
        return []
    first, more = lost[0], f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return [
        f"{path.name} has no key for the eps of {first.layer}{more}, which must become {first.after:g}: it is a "
        "constant in the model's code"
    ]
