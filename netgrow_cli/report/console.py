"""Where text for people goes: standard error, coloured on a terminal only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def error_console() -> Console:
    """A console on standard error; rich leaves colour out when that is no terminal or NO_COLOR is set."""
    from rich.console import Console as RichConsole

    class Console(RichConsole):
        def on_broken_pipe(self) -> None:
            """Nobody reads what is said any more; what is done goes on."""
            self.quiet = True

    return Console(stderr=True, highlight=False, soft_wrap=True)


def few(names: Sequence[str], most: int = 4) -> str:
    """The first of many names, and how many there are."""
    shown = ", ".join(names[:most])
    return f"{shown}, ... ({len(names)})" if len(names) > most else shown


def shape_text(shape: tuple[int, ...]) -> str:
    """[64, 17]"""
    return "[" + ", ".join(map(str, shape)) + "]"
