"""YAML with places: values know their lines and offsets, so that errors point and ranges can be rewritten."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Mark

MOST_NODES = 200_000
"""More values than any spec has: an alias bomb ends here."""

MOST_DEPTH = 50
"""A block's layer's range is at depth 8."""

_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _TooDeep(Exception):
    """Carries the line."""


class _Shallow(yaml.SafeLoader):
    """Stops at a depth that no spec has, before the time that deep nesting takes."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _TooDeep(parent.start_mark.line + 1 if parent else 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _compose(text: str) -> yaml.Node | None:
    """The document's nodes; by libyaml where it is there, which is ten times as fast and has no bound of depth."""
    fast = getattr(yaml, "CSafeLoader", None)
    if fast is None:
        return yaml.compose(text, Loader=_Shallow)
    depth = 0
    for event in yaml.parse(text, Loader=fast):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MOST_DEPTH:
                raise _TooDeep(event.start_mark.line + 1 if event.start_mark else 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.compose(text, Loader=fast)


@frozen
class Located:
    """A YAML value: a scalar, a list of Located, or a dict of Located by text key."""

    value: Any
    mark: Mark
    keys: dict[str, Mark] = dataclasses.field(default_factory=dict)

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


def load(text: str, file: str) -> Located:
    """Parse YAML text. Raises SpecError for bad syntax, duplicate keys, tags, and documents that blow up."""
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"{file}{line}: no valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{file}: no valid YAML: {str(error).splitlines()[0]}") from None
    except _TooDeep as deep:
        raise SpecError(f"{file}:{deep}: nested too deeply to be a spec") from None
    if root is None:
        raise SpecError(f"{file}: it is empty; a spec starts with `netgrow: 1`")
    try:
        return _Reader(file).read(root)
    except RecursionError:
        raise SpecError(f"{file}: nested too deeply to be a spec, or an alias that holds itself") from None


class _Reader:
    def __init__(self, file: str) -> None:
        self._file = file
        self._count = 0
        self._construct = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node) -> Located:
        self._count += 1
        mark = self._mark(node)
        if self._count > MOST_NODES:
            raise SpecError(f"{mark}: more than {MOST_NODES} values; are there aliases of aliases?")
        if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
            raise SpecError(f"{mark}: {node.tag} is nothing a spec can hold")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, mark)
        if isinstance(node, yaml.SequenceNode):
            return Located([self.read(item) for item in node.value], mark)
        return Located(self._scalar(node, mark), mark)

    def _mapping(self, node: yaml.MappingNode, mark: Mark) -> Located:
        values: dict[str, Located] = {}
        keys: dict[str, Mark] = {}
        for key_node, value_node in node.value:
            place = self._mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise SpecError(f"{place}: a key must be a word")
            key = str(key_node.value)
            if key in values:
                raise SpecError(f"{place}: {key!r} is given twice (first in line {keys[key].line})")
            keys[key] = place
            values[key] = self.read(value_node)
        return Located(values, mark, keys)

    def _scalar(self, node: yaml.Node, mark: Mark) -> Any:
        try:
            value = self._construct.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError):
            raise SpecError(f"{mark}: {node.tag} {str(node.value)[:40]!r} is nothing a spec can hold") from None
        if value is not None and not isinstance(value, (str, int, float, bool)):
            # Dates and the like are words here.
            return str(node.value)
        return value

    def _mark(self, node: yaml.Node) -> Mark:
        start, end = node.start_mark, node.end_mark
        return Mark(self._file, start.line + 1, start.index, end.index)
