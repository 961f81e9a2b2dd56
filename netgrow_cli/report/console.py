"""Where text for people goes: standard error, coloured on a terminal only. Without rich, which takes long to import."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

_CODES = {"bold": "1", "dim": "2", "green": "32", "yellow": "33"}
_MARKUP = re.compile(rf"\\\[|\[(?P<style>{'|'.join(_CODES)})\]|(?P<end>\[/\])")


class Console:
    """Prints lines with a little markup: `[bold]48[/] units`; a bracket that is none is written `\\[`.

    A context: all lines are written at once at its end.
    """

    def __init__(self, stream: Any, *, colour: bool) -> None:
        self._stream = stream
        self._colour = colour
        self._lines: list[str] = []

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        # (Where nobody reads what is said any more, what is done goes on.)
        with contextlib.suppress(BrokenPipeError):
            if self._lines and self._stream is not None:
                self._stream.write("".join(self._lines))
                self._stream.flush()

    def print(self, text: str, *, style: str | None = None, markup: bool = True) -> None:
        """One line. style: of all of it."""
        shown = _MARKUP.sub(self._replaced, text) if markup else text
        if style is not None:
            shown = f"{self._code(_CODES[style])}{shown}{self._code('0')}"
        self._lines.append(f"{shown}\n")

    def _replaced(self, found: re.Match[str]) -> str:
        if found["style"] is not None:
            return self._code(_CODES[found["style"]])
        return self._code("0") if found["end"] is not None else "["

    def _code(self, number: str) -> str:
        return f"\x1b[{number}m" if self._colour else ""


def error_console() -> Console:
    """A console on standard error, without colour where that is no terminal or NO_COLOR is set."""
    return Console(sys.stderr, colour=_coloured(sys.stderr))


def _coloured(stream: Any) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def few(names: Sequence[str], most: int = 4) -> str:
    """The first of many names, and how many there are."""
    shown = ", ".join(names[:most])
    return f"{shown}, ... ({len(names)})" if len(names) > most else shown


def shape_text(shape: tuple[int, ...]) -> str:
    """[64, 17]"""
    return "[" + ", ".join(map(str, shape)) + "]"
