"""Where text for people goes: standard error, coloured on a terminal only. Without rich, which takes long to import."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

_CODES = {"bold": "1", "dim": "2", "green": "32", "yellow": "33"}
_MARKUP = re.compile(rf"\\\[|\[(?P<style>{'|'.join(_CODES)})\]|(?P<end>\[/\])")


class Console:
    """Prints lines with a little markup: `[bold]48[/] units`; a bracket that is none is written `\\[`."""

    def __init__(self, stream: Any, *, colour: bool) -> None:
        self._stream = stream
        self._colour = colour

    def print(self, text: str, *, style: str | None = None, markup: bool = True) -> None:
        """One line. style: of all of it."""
        shown = _MARKUP.sub(self._replaced, text) if markup else text
        if style is not None:
            shown = f"{self._code(_CODES[style])}{shown}{self._code('0')}"
        try:
            self._stream.write(f"{shown}\n")
            self._stream.flush()
        except BrokenPipeError:
            # Nobody reads what is said any more; what is done goes on.
            self._stream, self._colour = _Nowhere(), False

    def _replaced(self, found: re.Match[str]) -> str:
        if found["style"] is not None:
            return self._code(_CODES[found["style"]])
        return self._code("0") if found["end"] is not None else "["

    def _code(self, number: str) -> str:
        return f"\x1b[{number}m" if self._colour else ""


class _Nowhere:
    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass


def error_console() -> Console:
    """A console on standard error, without colour where that is no terminal or NO_COLOR is set."""
    return Console(sys.stderr if sys.stderr is not None else _Nowhere(), colour=_coloured(sys.stderr))


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
