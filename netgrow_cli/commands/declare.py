"""How commands declare what they take, and the quick reading of a command line.

A command is a function whose parameters are annotated with `given` (an option) or `argument` (a place). From that
typer is told what there is (`typer_app.py`), for help and for whatever is wrong with a command line. A command line
that leaves no doubt is read here instead: importing typer takes longer than most of what `inspect` does.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from netgrow_cli.frozen import frozen

_WHOLE = re.compile(r"[0-9]{1,9}")
_REAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,18})?(e-?[0-9]{1,2})?")


@frozen
class Given:
    """An option. more: what typer is told besides (`metavar`, `min`, ...)."""

    flags: tuple[str, ...]
    help: str
    more: Mapping[str, Any]


@frozen
class Argument:
    """An argument by its place."""

    metavar: str
    help: str | None


def given(flag: str | tuple[str, ...], text: str, **more: Any) -> Given:
    """An option."""
    return Given((flag,) if isinstance(flag, str) else flag, text, more)


def argument(metavar: str, text: str | None = None) -> Argument:
    """An argument by its place."""
    return Argument(metavar, text)


def read_quickly(command: Callable[..., int], words: Sequence[str]) -> dict[str, Any] | None:
    """The arguments of a command by name; None where the words ask for help, are wrong, or merely unusual.

    What is not given is left to the function's defaults.
    """
    try:
        return _Reading(command).read(words)
    except _Unusual:
        return None


class _Unusual(Exception):
    """Not a command line to be read here."""


@frozen
class _Parameter:
    """A parameter of a command. kind: what one value of it is; several: whether it takes a list of them."""

    name: str
    kind: Any
    several: bool
    required: bool
    declared: Given | Argument


class _Reading:
    def __init__(self, command: Callable[..., int]) -> None:
        declared = [_parameter(item) for item in inspect.signature(command, eval_str=True).parameters.values()]
        self._places = [item for item in declared if isinstance(item.declared, Argument)]
        self._flags = {
            flag: item for item in declared if isinstance(item.declared, Given) for flag in item.declared.flags
        }
        self._needed = {item.name for item in declared if item.required}
        self._found: dict[str, Any] = {}

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        rest, placed = list(reversed(words)), []
        while rest:
            word = rest.pop()
            if word.startswith("-") and word != "-":
                self._option(word, rest)
            else:
                placed.append(word)
        self._place(placed)
        if not self._needed <= self._found.keys():
            raise _Unusual
        return self._found

    def _option(self, word: str, rest: list[str]) -> None:
        flag, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
        parameter = self._flags.get(flag)
        if parameter is None or (parameter.name in self._found and not parameter.several):
            raise _Unusual
        if parameter.kind is bool:
            if equals:
                raise _Unusual
            self._found[parameter.name] = True
            return
        if not equals:
            text = rest.pop() if rest else ""
            if text.startswith("-") and text != "-":
                raise _Unusual
        value = _value(parameter, text)
        if parameter.several:
            self._found.setdefault(parameter.name, []).append(value)
        else:
            self._found[parameter.name] = value

    def _place(self, placed: Sequence[str]) -> None:
        several = bool(self._places) and self._places[-1].several
        if len(placed) < len(self._places) or (len(placed) > len(self._places) and not several):
            raise _Unusual
        for number, parameter in enumerate(self._places):
            if parameter.several:
                self._found[parameter.name] = [_value(parameter, text) for text in placed[number:]]
            else:
                self._found[parameter.name] = _value(parameter, placed[number])


def _parameter(parameter: inspect.Parameter) -> _Parameter:
    hint = parameter.annotation
    declared = getattr(hint, "__metadata__", (None,))[0]
    if not isinstance(declared, (Given, Argument)):
        raise _Unusual
    kinds = [kind for kind in typing.get_args(hint.__origin__) or (hint.__origin__,) if kind is not type(None)]
    if typing.get_origin(hint.__origin__) is list:
        kind, several = kinds[0], True
    else:
        kind, several = kinds[0], typing.get_origin(kinds[0]) is list
        kind = typing.get_args(kind)[0] if several else kind
    return _Parameter(parameter.name, kind, several, parameter.default is inspect.Parameter.empty, declared)


def _value(parameter: _Parameter, text: str) -> Any:
    """The value that a text stands for, where it plainly does."""
    if not text.isprintable() or not text:
        raise _Unusual
    if parameter.kind is str:
        return text
    if parameter.kind is Path:
        return Path(text)
    if parameter.kind not in (int, float) or not (_WHOLE if parameter.kind is int else _REAL).fullmatch(text):
        raise _Unusual
    value = parameter.kind(text)
    more = parameter.declared.more if isinstance(parameter.declared, Given) else {}
    if value < more.get("min", value) or value > more.get("max", value):
        raise _Unusual
    return value
